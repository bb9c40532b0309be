"""When an intake claims: at once when the device has nothing, seldom while it is busy, and just before a pass is made."""

from __future__ import annotations

import asyncio
import time

import pytest

from fmplex_broker.streams.claims import CLAIM_ROOM
from fmplex_broker.wire.messages import INTERACTIVE
from fmplex_worker.host.claim_pacing import ClaimPacer
from fmplex_worker.host.jobs import JobTable
from tests.unit.worker.test_jobs import PASS, claimed, queue, window

LONG_S = 60.0


def busy(due_in_s: float = LONG_S) -> JobTable:
    """A pass runs that takes a minute, and as much waits."""
    w = window(2)
    held = [w.add(claimed(i)) for i in range(20)]
    keys = [queue(w, h, 100) for h in held]
    for key in keys[:10]:
        w.start(key)
    w.begun(INTERACTIVE, PASS, expected_s=LONG_S, due=time.monotonic() + due_in_s)
    return w


async def waits(pace: ClaimPacer) -> bool:
    """It is not time for a claim."""
    try:
        async with asyncio.timeout(0.05):
            await pace.turn()
    except TimeoutError:
        return True
    return False


async def test_an_idle_device_is_asked_for_at_once() -> None:
    pace = ClaimPacer(window(2))
    for _ in range(3):
        assert await pace.turn() == CLAIM_ROOM
        pace.sent()


async def test_while_a_pass_runs_and_the_next_is_at_hand_claims_are_rare() -> None:
    pace = ClaimPacer(busy())
    assert await pace.turn() == CLAIM_ROOM  # the first one is due
    pace.sent()
    assert await waits(pace)


async def test_the_last_claim_before_a_pass_is_made_comes_in_time_and_is_small() -> None:
    pace = ClaimPacer(busy(due_in_s=0.04))
    pace.sent()
    assert await pace.turn() < CLAIM_ROOM


async def test_a_landing_ends_the_wait() -> None:
    w = busy()
    pace = ClaimPacer(w)
    pace.sent()
    turn = asyncio.create_task(pace.turn())
    await asyncio.sleep(0)
    for held in list(w):
        if held.running:
            w.landed(held)
            w.finish(held)
    async with asyncio.timeout(5):
        assert await turn == CLAIM_ROOM


async def test_a_full_window_is_not_looked_at_all_the_time_during_the_very_first_pass() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await ClaimPacer(busy()).room()
