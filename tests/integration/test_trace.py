"""`fmplex trace` beside a running fleet: what it records adds up to what was sent."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fmplex import Client
from fmplex.local import LocalFleet
from tests.integration.conftest import TEXTS
from tests.integration.shell import FMPLEX, Shell, clean_environment
from tests.support.waiting import wait_until

JOBS = {"trace-heavy": 60, "trace-light": 20}
IDS = {"trace-heavy": [101, *[2023] * 50, 102], "trace-light": [101, 2023, 102]}
WEIGHTS = {"trace-heavy": 1.0, "trace-light": 4.0}


@pytest.fixture
def vfms(fleet: LocalFleet) -> Iterator[Client]:
    with Client(fleet.gateway_url) as client:
        for name, weight in WEIGHTS.items():
            client.vfms.deploy({"name": name, "backbone": "minilm", "head": {"kind": "embedding"}, "weight": weight})
        yield client
        for name in WEIGHTS:
            client.vfms.remove(name)


@contextmanager
def tracing(fleet: LocalFleet, folder: Path, *args: str) -> Iterator[Callable[[], str]]:
    """`fmplex trace run.jsonl` once it records; what it is given ends it and says what it printed."""
    process = subprocess.Popen(
        [FMPLEX, "trace", "run.jsonl", "--broker", fleet.broker_url, *args],
        cwd=folder, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    def end(how: signal.Signals = signal.SIGINT) -> str:
        process.send_signal(how)
        said, _ = process.communicate(timeout=90)
        assert process.returncode == (0 if how != signal.SIGKILL else -how), said
        return said

    try:
        wait_until(lambda: (folder / "run.jsonl").exists() or process.poll() is not None, "it records")
        assert process.poll() is None, process.communicate()[0]
        yield end
    finally:
        process.kill()
        process.communicate()


def recorded(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *passes = map(json.loads, (folder / "run.jsonl").read_text().splitlines())
    return header, passes


def test_what_is_recorded_adds_up_to_what_was_sent(fleet: LocalFleet, vfms: Client, tmp_path: Path) -> None:
    with tracing(fleet, tmp_path, "--plot", "who") as end:
        for name, n in JOBS.items():
            list(vfms.map(name, [{"input_ids": IDS[name]}] * n, window=n))
        said = end()
    header, passes = recorded(tmp_path)
    assert header["fmplex_trace"] == 1
    assert {p["worker"] for p in passes} <= set(header["workers"])
    mine = [part for p in passes for part in p["parts"] if part["vfm"] in JOBS]
    for name, n in JOBS.items():
        assert sum(part["jobs"] for part in mine if part["vfm"] == name) == n
        assert sum(part["units"] for part in mine if part["vfm"] == name) == n * len(IDS[name])
        assert {part["weight"] for part in mine if part["vfm"] == name} == {WEIGHTS[name]}
    for p in passes:
        assert sum(part["charged_s"] for part in p["parts"]) == pytest.approx(p["seconds"])
        assert p["units"] == sum(part["units"] for part in p["parts"])
        assert p["start_ms"] >= header["begin_ms"]
    numbers = [p["number"] for p in passes]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "one worker, no pass missing"
    assert f"run.jsonl: {len(passes)} passes, " in said
    assert "who.png, who.html" in said
    assert (tmp_path / "who.png").stat().st_size > 20_000
    assert all(name in (tmp_path / "who.html").read_text() for name in JOBS)


def test_a_killed_recording_keeps_what_it_had(fleet: LocalFleet, vfms: Client, tmp_path: Path) -> None:
    with tracing(fleet, tmp_path) as end:
        vfms.infer("trace-light", TEXTS[0])
        wait_until(lambda: len(recorded(tmp_path)[1]) > 0, "the pass is in the file")
        end(signal.SIGKILL)
    shell = Shell(tmp_path, fleet.gateway_url)
    assert "who.png, who.html" in shell("trace", "run.jsonl", "--plot", "who")
    assert "never overwritten" in shell.fails("trace", "run.jsonl", "--broker", fleet.broker_url)


def test_a_recording_ends_by_itself(fleet: LocalFleet, tmp_path: Path) -> None:
    shell = Shell(tmp_path, fleet.gateway_url)
    assert "run.jsonl: 0 passes" in shell("trace", "run.jsonl", "--seconds", "0.5", "--broker", fleet.broker_url)
    assert recorded(tmp_path)[1] == []
    assert "holds no pass" in shell.fails("trace", "run.jsonl", "--plot", "who")
