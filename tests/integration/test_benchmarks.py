"""The benchmarks as programs: each has a quick form that measures something, and one that is stopped ends in order."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.fleet import fleet_file
from benchmarks.harness import Options, Report, interleave, spread, worst
from fmplex_broker.specs.fleet import load_fleet

FOLDER = Path(__file__).parents[2] / "benchmarks"
CALLS_MAIN = re.compile(r"^ +main\(Benchmark\(", re.MULTILINE)
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if CALLS_MAIN.search(path.read_text()))
QUICK_S = 600  # far more than it should take: this test says that it works, not how fast
DEADLINE_S = 120


def command(script: str, *args: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{script}", "--quick", "--json", *args]


def test_the_scripts_are_found() -> None:
    assert {"adapters", "broker", "fairness", "peers", "soak"} <= set(SCRIPTS)


@pytest.mark.long
@pytest.mark.timeout(QUICK_S + 30)
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_quick_form_measures_and_leaves_no_process_behind(script: str) -> None:
    done = subprocess.run(command(script), capture_output=True, text=True, timeout=QUICK_S, cwd=FOLDER.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["benchmark"] == script
    assert result["complete"] is True
    assert result["ratios"]
    assert all(isinstance(value, float) for value in result["ratios"].values())
    assert set(result["spreads"]) <= set(result["ratios"])
    assert result["rounds"] >= 1
    assert "left behind" not in done.stderr


class Run:
    """The quick form of `broker` with more rounds than anybody waits for: a valkey-server and a worker beside it."""

    def __init__(self, tmp_path: Path) -> None:
        self._log = tmp_path / "stderr"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command("broker", "--rounds", "100000"), stdout=subprocess.PIPE, stderr=log, cwd=FOLDER.parent
            )

    def started(self) -> list[psutil.Process]:
        """Wait until everything runs. Returns all processes below the one that was started."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            below = psutil.Process(self.process.pid).children(recursive=True)
            names = [process.name() for process in below]
            if any("valkey" in name for name in names) and any("benchmarks.noop" in p.cmdline() for p in below):
                return below
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.05)
        raise AssertionError("it did not start")

    def measured(self, worker: psutil.Process) -> None:
        """Wait until the first round has been measured: each begins by stopping the worker, and the first of all warms up."""
        end, stops, before = time.monotonic() + DEADLINE_S, 0, ""
        while stops < 3:
            status = worker.status()
            stops += status == psutil.STATUS_STOPPED != before
            before = status
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.005)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    left = psutil.Process(run.process.pid).children(recursive=True) if run.process.poll() is None else []
    for process in (*left, run.process):  # it did not end, and the test has failed
        process.kill()
    run.process.wait()


def gone(processes: list[psutil.Process]) -> bool:
    end = time.monotonic() + DEADLINE_S
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_one_that_is_stopped_prints_what_it_has_and_leaves_no_process(
    how: signal.Signals, status: int, run: Run
) -> None:
    below = run.started()
    run.measured(next(process for process in below if "benchmarks.noop" in process.cmdline()))
    run.process.send_signal(how)
    out, _ = run.process.communicate(timeout=DEADLINE_S)
    assert run.process.returncode == status
    assert not [process for process in below if process.is_running()]
    result = json.loads(out)
    assert result["complete"] is False
    assert result["config"]["jobs"] == 2000
    assert result["samples"]["drain_per_s"]


def test_one_that_is_killed_leaves_no_process(run: Run) -> None:
    below = run.started()
    run.process.kill()
    out, _ = run.process.communicate(timeout=DEADLINE_S)
    assert gone(below)
    assert json.loads(out)["complete"] is False


def test_one_whose_own_process_is_killed_leaves_no_process(run: Run) -> None:
    below = run.started()
    bench = next(process for process in below if process.ppid() == run.process.pid)
    bench.kill()
    run.process.communicate(timeout=DEADLINE_S)
    assert run.process.returncode == 128 + signal.SIGKILL
    assert not [process for process in below if process.is_running()]


def test_a_ratio_is_compared_round_by_round() -> None:
    report = Report(Options(rounds=3, quick=True, json=True))
    values = iter([9.0, 9.0, 2.0, 1.0, 2.0, 6.0, 4.0, 2.0])  # a pair warms up; every other round is reversed
    interleave(report, {name: lambda name=name: {name: next(values)} for name in ("ours", "theirs")}, rounds=3)
    assert report.samples == {"ours": [2.0, 6.0, 4.0], "theirs": [1.0, 2.0, 2.0]}
    assert report.ratio("ours", "theirs") == [2.0, 3.0, 2.0]
    assert report.ratio("ours", "nobody") == []
    assert spread([2.0, 3.0, 2.0]) == pytest.approx(0.125)
    assert worst([[1.0], [3.0, 5.0], []]) == [3.0, 5.0]


def test_the_fleet_file_has_what_it_was_given(tmp_path: Path) -> None:
    config = fleet_file(tmp_path, "a", "model", pass_units=64, policy="fifo", residency={"device_bytes": 1000})
    fleet = load_fleet(config)
    assert (fleet.backbone.name, fleet.backbone.pass_units) == ("a", 64)
    assert (fleet.worker.policy, fleet.worker.threads, fleet.worker.residency.device_bytes) == ("fifo", 1, 1000)
