"""When an intake claims: at once when the device has nothing, seldom while it is busy, and just before a pass is made."""

from __future__ import annotations

import asyncio
import time

import pytest

from fmplex_broker.streams.claims import CLAIM_ROOM
from fmplex_broker.wire.messages import INTERACTIVE
from fmplex_worker.host.claim_pacing import ClaimPacer
from fmplex_worker.host.job_state import JobState
from tests.unit.host.tables import PASS, Table, claimed

LONG_S = 60.0


def busy(due_in_s: float = LONG_S) -> Table:
    """A pass runs that takes a minute, and as much waits."""
    t = Table(2)
    keys = [t.ready(t.take(claimed(i)), 100) for i in range(20)]
    for key in keys[:10]:
        t.start(key)
    now = time.monotonic()
    t.passes.begin({INTERACTIVE: PASS}, expected_s=LONG_S, due=now + due_in_s, now=now)
    return t


def pacer(t: Table) -> ClaimPacer:
    return ClaimPacer(t, t.passes)


async def waits(pace: ClaimPacer) -> bool:
    """It is not time for a claim."""
    try:
        async with asyncio.timeout(0.05):
            await pace.claim_due()
    except TimeoutError:
        return True
    return False


async def test_an_idle_device_is_asked_for_at_once() -> None:
    pace = pacer(Table(2))
    for _ in range(3):
        assert await pace.claim_due() == CLAIM_ROOM
        pace.note_claim()


async def test_while_a_pass_runs_and_the_next_is_at_hand_claims_are_rare() -> None:
    pace = pacer(busy())
    assert await pace.claim_due() == CLAIM_ROOM  # the first one is due
    pace.note_claim()
    assert await waits(pace)


async def test_the_last_claim_before_a_pass_is_made_comes_in_time_and_is_small() -> None:
    pace = pacer(busy(due_in_s=0.04))
    pace.note_claim()
    assert await pace.claim_due() < CLAIM_ROOM


async def test_a_landing_ends_the_wait() -> None:
    t = busy()
    pace = pacer(t)
    pace.note_claim()
    turn = asyncio.create_task(pace.claim_due())
    await asyncio.sleep(0)
    for job in list(t):
        if job.state is JobState.RUNNING:
            t.finish(job)
    async with asyncio.timeout(5):
        assert await turn == CLAIM_ROOM


async def test_a_full_window_is_not_looked_at_all_the_time_during_the_very_first_pass() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pacer(busy()).room_freed()
