"""What `.ci/run` leaves out on a slow machine is named."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).parents[3]
TESTS = "tests/unit/broker/test_keys.py"


def run(until: float) -> str:
    command = [sys.executable, "-m", "pytest", TESTS, "--until", str(until)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout


def test_tests_that_would_begin_too_late_are_skipped_and_named() -> None:
    late = run(time.time() - 1)
    assert "2 skipped in" in late
    for name in ("test_one_hash_tag", "test_no_two_names_meet"):
        assert f"{TESTS}::{name}: no time is left" in late
    assert "2 passed in" in run(time.time() + 600)
