"""A fleet on this machine, as `fmplex up` watches it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmplex import local
from fmplex.local import LocalFleet
from tests.support.fleets import write_fleet
from tests.support.waiting import wait_until


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    config = write_fleet(tmp_path / "fleet.toml", {"name": "b", "model": "/nowhere"}, broker="embedded")
    fleet = LocalFleet(config, data=tmp_path)
    yield fleet
    for process in fleet.processes.values():
        process.kill()
        process.wait()


def begin(fleet: LocalFleet, does: str) -> None:
    fleet._run("worker-0", [sys.executable, "-c", does], "wb")


def ends(fleet: LocalFleet) -> None:
    wait_until(lambda: fleet.dead() == ["worker-0"], "it has ended", 30)


def test_a_process_that_was_killed_starts_again(fleet: LocalFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_MIN_UPTIME_S", 0.0)
    begin(fleet, "import time; print('served', flush=True); time.sleep(600)")
    first = fleet.processes["worker-0"]
    wait_until(lambda: "served" in fleet.log("worker-0"), "it serves")
    first.send_signal(signal.SIGKILL)
    ends(fleet)
    assert fleet.exit_reason("worker-0") == "was killed by SIGKILL"
    assert fleet.revive("worker-0")
    assert fleet.dead() == []
    # What it said in its life before is still there.
    wait_until(lambda: fleet.log("worker-0").count("served") >= 2, "it serves again")


def test_a_process_that_cannot_live_is_not_started_for_ever(fleet: LocalFleet) -> None:
    begin(fleet, "raise SystemExit(3)")
    ends(fleet)
    assert fleet.exit_reason("worker-0") == "ended with exit code 3"
    assert not fleet.revive("worker-0")
