"""`fmplex demo --tuning`, with a training of seconds: everything happens, though nobody gets much better."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fmplex.demo.tuning.recipe import LEARNER, NEIGHBOURS

CLI = Path(sys.executable).parent / "fmplex"
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]


def test_a_vfm_is_trained_beside_its_neighbours(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [CLI, "demo", "--tuning", "--quick", "--seconds", "2", "--report", report, "--plot", tmp_path / "curves"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    told = json.loads(report.read_text())
    assert told["ok"], told["failures"]
    assert told["training"]["status"] == "succeeded"
    assert told["training"]["steps"] == told["training"]["of"]
    versions = [one["version"] for one in told["versions"]]
    assert told["scores"][-1]["version"] == versions[-1]
    assert told["scores"][0]["version"] not in versions
    for phase in ("before", "during", "after"):
        assert told["neighbours"][phase]["all"]["requests"] > 0
    for name in ("all", LEARNER.name, *(task.name for task in NEIGHBOURS)):
        assert name in done.stdout
    assert "What to look at" in done.stdout
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "plotly" in (tmp_path / "curves.html").read_text().lower()
