"""Idle workers: one task reads `wake` from its own last id; no ring is ever lost."""

from __future__ import annotations

import asyncio
import time

from fmplex_broker.streams.connection import BLOCK_MS
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.messages import INTERACTIVE
from tests.contract.harness import Bench, ended, job

SOON_S = BLOCK_MS / 1000 / 2  # well before the ceiling of a blocking read


async def woken(worker: Consumer) -> bool:
    """Listen until the bell rings, whatever else is said."""
    while not (await worker.listen()).woken:
        pass
    return True


async def listen(worker: Consumer, rung: asyncio.Event) -> None:
    while True:
        await woken(worker)
        rung.set()


async def test_a_ring_between_claim_and_listen_is_seen(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    assert await bench.claimed(worker) == []
    await bench.enqueue(job())
    assert await asyncio.wait_for(woken(worker), SOON_S)


async def test_a_ring_while_listening_is_seen(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(job("b"))
    assert await woken(worker)
    await bench.claimed(worker)
    listening = asyncio.create_task(woken(worker))
    await asyncio.sleep(0.02)  # let it block
    assert not listening.done()
    await bench.enqueue(job())
    assert await asyncio.wait_for(listening, SOON_S)


async def test_a_listener_never_goes_back(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(job("a"))
    assert await woken(worker)
    await bench.enqueue(job("b"))
    assert await woken(worker)
    listening = asyncio.create_task(woken(worker))
    done, _ = await asyncio.wait([listening], timeout=0.1)
    await ended(listening)
    assert not done


async def test_release_recover_and_reap_ring(bench: Bench) -> None:
    await bench.serve("a")
    idle, busy = await bench.worker("idle"), await bench.worker("busy")
    await bench.enqueue(job())
    held = await bench.claimed(busy)
    await bench.claimed(idle)
    await busy.release(held)
    assert await asyncio.wait_for(woken(idle), SOON_S)
    await bench.claimed(busy)
    await bench.claimed(idle)
    await busy.recover([])
    assert await asyncio.wait_for(woken(idle), SOON_S)
    await bench.claimed(busy)
    await bench.claimed(idle)
    await bench.lapse(busy)
    await idle.reap(10**6, max_attempts=3)
    assert await asyncio.wait_for(woken(idle), SOON_S)


async def test_no_job_waits_beside_an_idle_worker(real: Bench) -> None:
    """Jobs one by one to two workers that follow the habits, one of them with room for one only: each starts at once."""
    await real.serve("a", "b")
    started = asyncio.Queue[str]()

    async def work(name: str, room: int) -> None:
        worker, rung = await real.worker(name), asyncio.Event()
        ear = asyncio.create_task(listen(worker, rung))
        try:
            while True:
                rung.clear()
                claim = await worker.claim({INTERACTIVE: room})
                for held in claim.jobs:
                    started.put_nowait(held.job)
                if claim.jobs:
                    await asyncio.sleep(0.003)  # the pass
                    await worker.settle([(held, b"") for held in claim.jobs])
                elif not claim.more:
                    await rung.wait()
        finally:
            await ended(ear)

    workers = [asyncio.create_task(work("narrow", 1)), asyncio.create_task(work("wide", 8))]
    slowest = 0.0
    for i in range(300):
        sent, begin = job("ab"[i % 2]), time.monotonic()
        await real.enqueue(sent)
        assert await asyncio.wait_for(started.get(), SOON_S) == sent.job
        slowest = max(slowest, time.monotonic() - begin)
    assert slowest < SOON_S
    await ended(*workers)


async def heard(worker: Consumer, least: int) -> list[tuple[int, str]]:
    """What the words of the feed say, until there are so many."""
    changed: list[tuple[int, str]] = []
    while len(changed) < least:
        words = await asyncio.wait_for(worker.listen(), SOON_S)
        assert (words.woken, words.cancelled) == (False, [])
        changed += words.changed
    return changed


async def test_a_change_of_a_vfm_is_heard_at_once(bench: Bench) -> None:
    worker = await bench.worker()
    listening = asyncio.create_task(heard(worker, 1))
    await bench.serve("a")
    assert (await listening)[0] == (1, "a")


async def test_words_carry_the_counter_without_a_gap_and_the_name_of_the_vfm(bench: Bench) -> None:
    """A worker that has heard every number up to the beat's counter has missed nothing."""
    worker, dead = await bench.worker(), await bench.worker("dead")
    await bench.serve("a", "b")  # each: offered, accepted
    await bench.scripts("alter", bench.keys.vfms, ["a", 2, "{}", 100, 3.0, 0, 0])
    await bench.scripts("propose", bench.keys.vfms, ["b", "v2", "{}", 2, 100, 1.0, 0, 0])
    await bench.scripts("vote", bench.keys.vfms, ["b", "v2", "w1", ""])  # dead's is awaited
    await bench.lapse(dead)
    await worker.reap(10**6, max_attempts=3)  # b's votes are to be counted again
    await bench.scripts("vote", bench.keys.vfms, ["b", "v2", "w1", '{"code": "package_rejected"}'])
    await bench.scripts("retire", bench.keys.vfms, ["a", "answer", 10, b""])  # closed, gone
    counter = (await worker.beat()).changes
    words = await heard(worker, counter)
    assert [n for n, _ in words] == list(range(1, counter + 1))
    assert "".join(vfm for _, vfm in words) == "aabb" + "a" + "b" + "b" + "b" + "aa"
