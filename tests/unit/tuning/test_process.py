"""`python -m fmplex_worker.tuning` as a process: lines in, events out, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from fmplex_broker.packages.package import read_package
from fmplex_broker.specs.fitting import FitDone, FitEpoch, FitEvent, FitFailed, FitSpec, FitStarted
from fmplex_worker.tuning import fit
from fmplex_worker.tuning.process import serve
from tests.unit.tuning.conftest import SpecFor

EVENT: TypeAdapter[FitEvent] = TypeAdapter(FitEvent)


def _run(lines: bytes, **environment: str) -> tuple[int, list[FitEvent], str]:
    command = [sys.executable, "-m", "fmplex_worker.tuning"]
    done = subprocess.run(
        command, input=lines, capture_output=True, timeout=120, check=False, env={**os.environ, **environment}
    )
    return done.returncode, [EVENT.validate_json(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_good_and_bad_specs_in_one_process(spec_for: SpecFor, tmp_path: Path) -> None:
    good = spec_for("classification", name="good", lora={"r": 2}, epochs=2)
    bad_data = good.model_copy(update={"name": "bad-data", "data": tmp_path / "none.jsonl", "out": tmp_path / "no"})
    lines = [
        bad_data.model_dump_json(),
        "",
        "{nonsense",
        json.dumps({"name": "typo", "hed": 3}),
        good.model_dump_json(),
        good.model_copy(update={"name": "again", "lora": None, "out": tmp_path / "again"}).model_dump_json(),
    ]
    code, events, _ = _run(("\n".join(lines) + "\n").encode() + b"\xff\xfe\n")

    assert code == 1
    failed = [e for e in events if isinstance(e, FitFailed)]
    assert [(e.name, e.code, e.field) for e in failed] == [
        ("bad-data", "invalid_input", "data"),
        ("line 3", "invalid_input", "(whole)"),
        ("typo", "invalid_input", "data"),
        ("line 7", "invalid_input", "(whole)"),
    ]
    done = [e for e in events if isinstance(e, FitDone)]
    assert [e.name for e in done] == ["good", "again"]
    assert [e.event for e in events if e.name == "good"] == ["started", "epoch", "epoch", "done"]
    for event in done:
        assert read_package(event.out).digest == event.artifact
    assert not (tmp_path / "no").exists()


@pytest.mark.long
def test_versions_do_not_depend_on_the_process_or_its_hash_seed(spec_for: SpecFor, tmp_path: Path) -> None:
    spec = spec_for("classification", lora={"r": 2}, epochs=1, threads=1)
    versions = []
    for seed in ("1", "2"):
        code, events, stderr = _run((spec.model_dump_json() + "\n").encode(), PYTHONHASHSEED=seed)
        assert (code, stderr) == (0, "")
        assert [type(e) for e in events] == [FitStarted, FitEpoch, FitDone]
        versions.append(events[-1].artifact)  # type: ignore[union-attr]
    assert versions[0] == versions[1]


def test_a_listener_that_leaves_ends_it_quietly(spec_for: SpecFor) -> None:
    spec = spec_for("classification")
    started = subprocess.Popen(
        [sys.executable, "-m", "fmplex_worker.tuning"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert started.stdin is not None
    assert started.stdout is not None
    assert started.stderr is not None
    started.stdout.close()
    _, _ = started.stdin.write((spec.model_dump_json() + "\n").encode()), started.stdin.close()
    stderr = started.stderr.read().decode()
    started.stderr.close()
    assert (started.wait(timeout=60), stderr) == (1, "")
    assert not spec.out.exists()


def test_an_unforeseen_exception_fails_its_spec_alone(
    spec_for: SpecFor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(path: Path, *_: object) -> None:
        raise ZeroDivisionError("never seen before")

    monkeypatch.setattr("fmplex_worker.tuning.head_data.read", broken)
    events: list[Any] = []
    line = spec_for("classification").model_dump_json().encode()
    assert serve([line, line], TypeAdapter(FitSpec), fit, events.append) is False
    assert events == [FitFailed(name="task", code="internal", message="ZeroDivisionError: never seen before")] * 2
    assert len(caplog.records) == 2  # with their tracebacks, for whoever has to mend it
