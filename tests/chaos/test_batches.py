"""A batch of ten thousand lines, undisturbed and through all that can die or stand still: the same files.

Broker, gateways and workers are real processes; the workers' engine answers every text with itself, so that answers can be
compared to the letter.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from fmplex_broker.streams.embedded import EmbeddedServer, free_port
from tests.support.acting import NAME
from tests.support.batch_runs import BatchHttp, Found, infer_line, infer_url
from tests.support.fleets import frozen, spawn, status, write_fleet
from tests.support.waiting import wait_until

LINES = 10_000
VFMS = ("one", "other")
BAD = {f"id-{i}": (404, "unknown_vfm") for i in range(0, LINES, 200)}
BAD |= {f"id-{i}": (None, "url_mismatch") for i in range(100, LINES, 200)}
GOOD = {f"id-{i}": (200, [{"text": f"text {i}"}]) for i in range(LINES) if f"id-{i}" not in BAD}
PATIENCE_S = 600.0
STILL_S = 15.0


def lines() -> Iterator[dict[str, Any]]:
    """Ten thousand, every hundredth of them bad."""
    for i in range(LINES):
        line = infer_line(f"id-{i}", f"text {i}", VFMS[i % 2])
        if i % 200 == 0:
            line["url"] = infer_url("nobody")
        elif i % 100 == 0:
            line["url"] = "/v1/embeddings"
        yield line


class Place:
    """A broker, two gateways and two workers, each a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = EmbeddedServer(folder / "broker")
        self.config = write_fleet(folder / "fleet.toml", {"name": NAME, "model": "none"})
        self.ports = {name: free_port() for name in ("gateway-0", "gateway-1")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def start(self, name: str) -> None:
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        if name in self.ports:
            port = str(self.ports[name])
            self.processes[name] = spawn("fmplex_gateway", self.config, self.server.url, log, "--port", port)
            return
        command = [sys.executable, "-m", "tests.support.acting", "--broker", self.server.url, "--lease-ms", "5000"]
        with log.open("wb") as out:
            self.processes[name] = subprocess.Popen(
                [*command, "--artifacts", str(self.folder / "artifacts")], stdout=out, stderr=out
            )

    def kill(self, name: str) -> None:
        """Kill a process, and start it again."""
        self.processes[name].kill()
        self.processes[name].wait()
        self.start(name)

    def limit(self, rate: float) -> None:
        """Let each vFM take so many tokens a second."""
        for vfm in VFMS:
            body = {"limits": {"rate": rate}}
            httpx.patch(f"{self.url('gateway-0')}/v1/vfms/{vfm}", json=body, timeout=60).raise_for_status()

    def lives(self, name: str) -> None:
        wait_until(lambda: status(f"{self.url(name)}/readyz") == 200, f"{name} is ready", PATIENCE_S)

    def __enter__(self) -> Place:
        try:
            self.begin()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None:
        self.server.start()
        for name in (*self.ports, "worker-0", "worker-1"):
            self.start(name)
        for name in self.ports:
            self.lives(name)
        for vfm in VFMS:
            spec = {"name": vfm, "backbone": NAME, "head": {"kind": "features"}}
            httpx.post(f"{self.url('gateway-0')}/v1/vfms", json={"spec": spec}, timeout=60).raise_for_status()

    def end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(60)
        self.server.stop()


def check(batches: BatchHttp, batch: str) -> None:
    """Wait for the end of a batch: every line is in the one file where it must be."""
    shown = batches.ended(batch, PATIENCE_S)
    assert shown["status"] == "completed"
    assert shown["request_counts"] == {"total": LINES, "completed": len(GOOD), "failed": len(BAD)}
    output, errors = batches.files(shown)
    assert_same(output, GOOD)
    assert_same(errors, BAD)


def assert_same(got: Found, wanted: Found) -> None:
    assert got.keys() == wanted.keys()
    assert {name: row for name, row in got.items() if row != wanted[name]} == {}


@pytest.mark.long
@pytest.mark.timeout(3 * PATIENCE_S)
def test_the_same_files_whatever_dies(tmp_path: Path) -> None:
    with ExitStack() as stack:
        place = stack.enter_context(Place(tmp_path))
        each = {
            name: BatchHttp(stack.enter_context(httpx.Client(base_url=place.url(name), timeout=60)))
            for name in place.ports
        }
        batches = each["gateway-1"]
        content = list(lines())
        check(batches, batches.order(content))

        place.limit(LINES / 40)  # it must last
        batch, done = batches.order(content), 0

        def comes_on(ask: BatchHttp, lines: int = LINES // 20) -> None:
            nonlocal done
            wait_until(lambda: ask.done(batch) >= done + lines, f"{lines} more lines are done", PATIENCE_S)
            done = ask.done(batch)
            assert done < LINES

        for victim in ("gateway-0", "worker-0", "gateway-1", "worker-1", "gateway-0"):
            comes_on(batches)
            place.kill(victim)
            place.lives("gateway-1")
        comes_on(batches)
        place.server.kill()
        place.server.start()
        for still, other in (("gateway-0", "gateway-1"), ("gateway-1", "gateway-0")):
            place.lives(other)
            with frozen(place.processes[still]):  # one of the two feeds it
                began = time.monotonic()
                comes_on(each[other], 1)
                time.sleep(max(0.0, began + STILL_S - time.monotonic()))
            assert each[other].done(batch) < LINES
        place.limit(1e9)
        check(batches, batch)
