"""Workers and the broker die while texts grow: who reads along notices a pause and nothing else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from fmplex_broker.streams.keys import Keys
from fmplex_broker.streams.queue_client import QueueClient
from tests.support.fleets import frozen
from tests.support.generation_fleet import (
    BACKBONE,
    GREEDY,
    VFMS,
    Reading,
    Site,
    assert_same,
    holds_nothing,
    in_hand,
    prompt,
    read,
    write,
)
from tests.support.waiting import until

LEASE_MS = 800
COMPARED = {**GREEDY, "logprobs": 2}
CHANCE = {"temperature": 0.9, "top_p": 0.95, "seed": 7, "ignore_eos": True, "logprobs": 2}
TOKENS = 300
PASS_UNITS = 16


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Passes are small, so that not every text is in every pass."""
    with Site(tmp_path_factory.mktemp("generation")) as site:
        start(site, "worker-0")
        site.serving("worker-0")
        site.deploy(*VFMS)
        yield site


def start(site: Site, name: str) -> None:
    site.start(name, lease_ms=LEASE_MS, pass_units=PASS_UNITS)


@pytest.fixture
async def session(site: Site) -> AsyncIterator[QueueClient]:
    """Two workers serve, whatever the test before did to them."""
    site.workers = {name: process for name, process in site.workers.items() if process.poll() is None}
    fresh = [f"worker-{len(list(site.folder.glob('worker-*.log'))) + i}" for i in range(2 - len(site.workers))]
    for name in fresh:
        start(site, name)
    await asyncio.to_thread(site.serving, *fresh)
    session = QueueClient.connect(site.url)
    await holds_nothing(session)
    yield session
    await session.close()


async def reading_all(session: QueueClient, **params: Any) -> dict[str, Reading]:
    """Texts of every vFM, all begun."""
    value = prompt(20)
    readings = {vfm: await read(session, vfm, value, max_tokens=TOKENS, **params) for vfm in VFMS}
    for reading in readings.values():
        await reading.reaches(20)
    return readings


async def whole(session: QueueClient, readings: dict[str, Reading], **params: Any) -> None:
    """Every text is what it is when nothing happens."""
    outputs = [await reading.output() for reading in readings.values()]
    wanted = [write(session, vfm, prompt(20), max_tokens=TOKENS, **params) for vfm in readings]
    for output, text in zip(outputs, await asyncio.gather(*wanted), strict=True):
        assert_same(output, text)
    await holds_nothing(session)


async def busiest(site: Site, session: QueueClient) -> str:
    """The worker that has most in hand, once one has anything: what a dead one had may be nobody's for a moment."""

    async def look() -> str | None:
        hands = await in_hand(session, VFMS)
        names = {site.ids(name)[-1]: name for name in site.workers}
        return next((names[worker] for worker, _ in hands.most_common() if worker in names), None)

    return str(await until(look, "a worker has work in hand"))


@pytest.mark.parametrize("params", [COMPARED, CHANCE], ids=["greedy", "by chance"])
async def test_readers_of_a_killed_workers_texts_read_on(
    site: Site, session: QueueClient, params: dict[str, Any]
) -> None:
    readings = await reading_all(session, **params)
    name = await busiest(site, session)
    gone = site.ids(name)[-1]
    await asyncio.to_thread(site.kill, name)
    assert not all(reading.task.done() for reading in readings.values()), "it died in the middle"
    await whole(session, readings, **params)
    assert {(await reading.task).worker for reading in readings.values()} != {gone}


async def test_texts_that_were_in_no_pass_when_the_worker_died_go_on_too(site: Site, session: QueueClient) -> None:
    """More texts than a pass takes: some had been told of, and waited for their next turn."""
    asks = [(vfm, prompt(10, i)) for i in range(4) for vfm in VFMS]
    readings = [await read(session, vfm, value, max_tokens=150, **COMPARED) for vfm, value in asks]
    for reading in readings:
        await reading.reaches(1)
    await asyncio.to_thread(site.kill, next(iter(site.workers)))
    assert not all(reading.task.done() for reading in readings), "it died in the middle"
    outputs = [await reading.output() for reading in readings]
    again = await asyncio.gather(*(write(session, vfm, value, max_tokens=150, **COMPARED) for vfm, value in asks))
    for got, wanted in zip(outputs, again, strict=True):
        assert_same(got, wanted)


async def test_readers_of_a_worker_that_stood_still_are_told_nothing_twice(site: Site, session: QueueClient) -> None:
    """It has been taken for dead; when it goes on, it writes the same texts for nobody."""
    readings = await reading_all(session, **COMPARED)
    name = await busiest(site, session)
    gone = site.ids(name)[-1]
    others = [other for other in site.workers if other != name]
    with frozen(site.workers[name]):
        await until(lambda: any(f"took over from worker {gone}" in site.log(n) for n in others), "others took over")
    await whole(session, readings, **COMPARED)
    await until(lambda: site.ids(name)[-1] != gone, "it serves again under a new id")


async def test_two_workers_die_one_after_the_other(site: Site, session: QueueClient) -> None:
    start(site, "worker-third")
    await asyncio.to_thread(site.serving, "worker-third")
    readings = await reading_all(session, **COMPARED)
    for _ in range(2):
        name = await busiest(site, session)
        gone = site.ids(name)[-1]
        await asyncio.to_thread(site.kill, name)
        others = list(site.workers)
        await until(lambda g=gone, o=others: any(f"over from worker {g}" in site.log(n) for n in o), "taken over")  # type: ignore[misc]
    await whole(session, readings, **COMPARED)


async def test_a_broker_that_restarts_in_the_middle_costs_no_text(site: Site, session: QueueClient) -> None:
    """What was told meanwhile is lost; the rest comes from the reply."""
    readings = await reading_all(session, **COMPARED)
    await asyncio.to_thread(site.server.kill)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(site.server.start)
    assert not all(reading.task.done() for reading in readings.values()), "it died in the middle"
    await whole(session, readings, **COMPARED)


async def test_what_is_lost_on_the_way_comes_with_the_reply(session: QueueClient) -> None:
    """An inbox that was trimmed, or deleted by somebody's hand."""
    readings = await reading_all(session, **COMPARED)
    for _ in range(20):
        await session.redis.delete(Keys(BACKBONE).inbox(session._id))
        await asyncio.sleep(0.005)
    await whole(session, readings, **COMPARED)


async def test_a_worker_told_to_end_while_its_sister_dies_loses_no_text(site: Site, session: QueueClient) -> None:
    readings = await reading_all(session, **COMPARED)
    name = await busiest(site, session)
    other = next(other for other in site.workers if other != name)
    start(site, "worker-heir")
    await asyncio.to_thread(site.serving, "worker-heir")
    site.workers[name].send_signal(signal.SIGTERM)
    await asyncio.to_thread(site.kill, other)
    await whole(session, readings, **COMPARED)
    await until(lambda: site.workers[name].poll() is not None, "it has ended")
    assert site.workers[name].returncode == 0, site.log(name)
