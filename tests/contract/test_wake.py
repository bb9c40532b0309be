"""Idle workers: one task reads `wake` from its own last id; no ring is ever lost."""

from __future__ import annotations

import asyncio
import time

from fmplex_broker.messages import INTERACTIVE
from fmplex_broker.streams.connection import BLOCK_MS
from fmplex_broker.streams.consumer import Consumer
from tests.contract.harness import Bench, ended, job

SOON_S = BLOCK_MS / 1000 / 3  # well before the ceiling of a blocking read


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
    await bench.claimed(worker)
    listening = asyncio.create_task(woken(worker))
    await asyncio.sleep(0.02)  # let it block
    assert not listening.done()
    await bench.enqueue(job())
    assert await asyncio.wait_for(listening, SOON_S)


async def test_rings_before_the_claim_are_done_with(bench: Bench) -> None:
    """The claim has seen what they rang for: no second, empty round."""
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    await bench.claimed(worker)
    listening = asyncio.create_task(woken(worker))
    done, _ = await asyncio.wait([listening], timeout=0.1)
    await ended(listening)
    assert not done


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


async def test_a_change_of_a_vfm_is_heard_at_once(bench: Bench) -> None:
    worker = await bench.worker()
    listening = asyncio.create_task(worker.listen())
    await bench.serve("a")
    words = await asyncio.wait_for(listening, SOON_S)
    assert (words.changed, words.woken, words.cancelled) == (True, False, [])
