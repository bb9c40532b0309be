"""Options shared by all suites."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from math import inf

import pytest
from hypothesis import settings

from tests.support import forking

# Whoever is started in a shell's background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.platform == "linux":
    subprocess.Popen = forking.Popen  # type: ignore[misc]

# A stall of the machine is no failure. `--hypothesis-profile` comes after this and wins.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
settings.register_profile("deep", max_examples=10_000, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--attack-seconds", type=float, default=20.0, help="how long the broker is attacked, over all seeds"
    )
    parser.addoption(
        "--until",
        type=float,
        default=inf,
        help="second (since 1970) after which no more tests begin; they are skipped by name",
    )
    parser.addoption("--attack-seed", type=int, default=None, help="run the attack with this seed only")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what would begin too late, before anything is set up for it."""
    if time.time() > item.config.getoption("--until"):
        pytest.skip(f"{item.nodeid}: no time is left")
