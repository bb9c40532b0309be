"""A batch of ten thousand lines, undisturbed and through all that can die or stand still: the same files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fmplex.local import LocalFleet
from tests.chaos.conftest import Crew
from tests.chaos.test_broker import restart
from tests.support.batch_runs import BatchHttp, Found, infer_line
from tests.support.fleets import frozen, gateway, status
from tests.support.waiting import wait_until

LINES = 10_000
BAD = {f"id-{i}": (404, "unknown_vfm") for i in range(0, LINES, 200)}
BAD |= {f"id-{i}": (None, "url_mismatch") for i in range(100, LINES, 200)}
PATIENCE_S = 600.0


def lines() -> Iterator[dict[str, Any]]:
    """Ten thousand, every hundredth of them bad."""
    for i in range(LINES):
        line = infer_line(f"id-{i}", f"a mail about thing {i}", ("light", "heavy", "stars", "plain")[i % 4])
        if i % 200 == 0:
            line["url"] = "/v1/vfms/nobody/infer"
        elif i % 100 == 0:
            line["url"] = "/v1/embeddings"
        yield line


@pytest.fixture
def batches(fleet: LocalFleet) -> Iterator[BatchHttp]:
    with httpx.Client(base_url=fleet.gateway_url, timeout=60) as http:
        yield BatchHttp(http)


def checked(batches: BatchHttp, shown: dict[str, Any]) -> Found:
    """Check that every line is in the file where it must be; return the output."""
    assert shown["status"] == "completed"
    assert shown["request_counts"] == {"total": LINES, "completed": LINES - len(BAD), "failed": len(BAD)}
    output, errors = batches.files(shown)
    assert errors == BAD
    assert output.keys() == {f"id-{i}" for i in range(LINES)} - BAD.keys()
    return output


def numbers(answer: tuple[int | None, Any]) -> list[float]:
    [output] = answer[1]
    return list(output["scores"].values()) if "scores" in output else [output["value"]]


def revive(fleet: LocalFleet, name: str) -> None:
    """Kill a process, and start it again."""
    fleet.processes[name].kill()
    fleet.processes[name].wait()
    fleet.revive(name)


@pytest.mark.long
@pytest.mark.timeout(3 * PATIENCE_S)
async def test_the_same_files_whatever_dies(fleet: LocalFleet, crew: Crew, batches: BatchHttp, tmp_path: Path) -> None:
    content = b"".join(httpx.Request("POST", "http://x", json=line).content + b"\n" for line in lines())
    wanted = checked(batches, batches.ended(batches.order(content), PATIENCE_S))

    with (
        gateway(fleet.config, fleet.broker_url, tmp_path / "gateway.log") as (url, second),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        batch, done = batches.order(content), 0

        def comes_on(lines: int = 800) -> None:
            nonlocal done
            wait_until(lambda: batches.done(batch) >= done + lines, f"{lines} more lines are done", PATIENCE_S)
            done = batches.done(batch)

        for victim in ("gateway", "worker", "gateway", "worker", "gateway"):
            comes_on()
            revive(fleet, victim if victim == "gateway" else crew.any()[0])
        comes_on()
        await restart(fleet)
        comes_on()
        wait_until(lambda: status(f"{fleet.gateway_url}/healthz") == 200, "the gateway lives")
        # Whoever of the two feeds it: first one stands still, then the other.
        began, batches.http = time.monotonic(), http
        with frozen(fleet.processes["gateway"]):
            await asyncio.to_thread(comes_on)
            await asyncio.sleep(max(0.0, began + 15 - time.monotonic()))  # its lease runs out
        with httpx.Client(base_url=fleet.gateway_url, timeout=60) as batches.http, frozen(second):
            await asyncio.sleep(15)
            await asyncio.to_thread(comes_on)
        batches.http = http
        got = checked(batches, batches.ended(batch, PATIENCE_S))
    assert {name: pytest.approx(numbers(answer), abs=1e-4) for name, answer in wanted.items()} == {
        name: numbers(answer) for name, answer in got.items()
    }
