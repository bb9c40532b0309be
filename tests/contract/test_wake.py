"""Idle workers: one task reads `wake` from its own last id; no ring is ever lost."""

from __future__ import annotations

import asyncio
import time

from fmplex_broker.messages import INTERACTIVE
from fmplex_broker.streams.connection import BLOCK_MS
from fmplex_broker.streams.consumer import Consumer
from tests.contract.harness import Bench, job

SOON_S = BLOCK_MS / 1000 / 3  # well before the ceiling of a blocking read


async def ended(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def listen(worker: Consumer, rung: asyncio.Event) -> None:
    while True:
        woken, *_ = await worker.listen()
        if woken:
            rung.set()


async def test_a_ring_between_claim_and_listen_is_seen(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    assert await bench.claimed(worker) == []
    await bench.enqueue(job())
    woken, *_ = await asyncio.wait_for(worker.listen(), SOON_S)
    assert woken


async def test_a_ring_while_listening_is_seen(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(job("b"))
    await bench.claimed(worker)
    await worker.listen()  # what was said of the deployments
    listening = asyncio.create_task(worker.listen())
    await asyncio.sleep(0.02)  # let it block
    assert not listening.done()
    await bench.enqueue(job())
    woken, *_ = await asyncio.wait_for(listening, SOON_S)
    assert woken


async def test_rings_before_the_claim_are_done_with(bench: Bench) -> None:
    """The claim has seen what they rang for: no second, empty round."""
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    await bench.claimed(worker)
    assert not (await worker.listen()).woken  # only what was said of the deployment
    listening = asyncio.create_task(worker.listen())
    done, _ = await asyncio.wait([listening], timeout=0.1)
    await ended(listening)
    assert not done


async def test_a_listener_never_goes_back(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(job("a"))
    assert (await worker.listen())[0]
    await bench.enqueue(job("b"))
    assert (await worker.listen())[0]
    listening = asyncio.create_task(worker.listen())
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
    assert (await asyncio.wait_for(idle.listen(), SOON_S))[0]
    await bench.claimed(busy)
    await bench.claimed(idle)
    await busy.recover([])
    assert (await asyncio.wait_for(idle.listen(), SOON_S))[0]
    await bench.claimed(busy)
    await bench.claimed(idle)
    await bench.lapse(busy)
    await idle.reap(10**6, max_attempts=3)
    assert (await asyncio.wait_for(idle.listen(), SOON_S))[0]


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
