"""Two workers on the same streams, and what may happen to one of them."""

from __future__ import annotations

import asyncio
import signal

import pytest

from fmplex import AsyncClient
from fmplex.local import LocalFleet
from fmplex_broker.errors import NoWorker
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import INTERACTIVE, Flow
from fmplex_broker.wire.stats import by_flow
from tests.chaos.conftest import TEXT, VFMS, Crew, Load
from tests.support.fleets import frozen
from tests.support.waiting import until


async def test_both_workers_take_work_and_weights_hold_across_both(load: Load, crew: Crew) -> None:
    await asyncio.gather(load.send("heavy", 3600), load.send("light", 1300))
    # The start is not counted: what one got of the windows (2 x 128 jobs) while the other was still being sent is made up for
    # after it. Both are backlogged until nine tenths of the heavier one's jobs are answered, and workers speak once a second.
    await load.reaches(len(load.answered) + 1000)
    begin = by_flow((await load.stats()).values())
    await until(lambda: sum(vfm == "heavy" for _, vfm, _ in load.answered) >= 3000, "most of it is done")
    end = by_flow((await load.stats()).values())
    await load.whole()
    # Of the device's time: a job of the light one costs more, for fewer of them share what its adapter and head cost a pass.
    flows = {vfm: Flow(vfm, INTERACTIVE) for vfm in ("heavy", "light")}
    got = {vfm: end[flow].since(begin[flow]).charged_s for vfm, flow in flows.items()}
    assert min(end[flow].since(begin[flow]).done for flow in flows.values()) > 100
    assert 4 / 1.25 <= got["heavy"] / got["light"] <= 4 * 1.25, got
    by_id = load.workers()
    shares = [sum(by_id[worker] for worker in crew.ids(name)) for name in crew.processes()]
    assert len(shares) == 2
    assert min(shares) >= 0.1 * sum(shares), shares


async def test_no_worker_rests_while_work_waits(load: Load, crew: Crew) -> None:
    await load.send_to_all(600)
    await load.reaches(100)
    begin = await load.stats()
    await load.reaches(int(0.8 * load.sent))
    end = await load.stats()
    await load.whole()
    for worker in begin.keys() & end.keys():
        seconds = end[worker].uptime_s - begin[worker].uptime_s
        # Busy is counted by the clock on the wall, so that a busy machine does not make a worker look lazy.
        assert end[worker].busy_s - begin[worker].busy_s >= 0.5 * seconds


async def test_a_worker_told_to_end_under_load_leaves_nothing_behind(load: Load, crew: Crew) -> None:
    name, process = crew.any()
    await load.send_to_all(400)
    await until(lambda: load.workers()[crew.ids(name)[-1]] > 20, "it is in the middle of its work")
    process.send_signal(signal.SIGTERM)
    await until(lambda: process.poll() is not None, "it has ended")
    assert process.returncode == 0, crew.log(name)
    assert "has left" in crew.log(name)
    assert len(load.answered) < load.sent, "there was still work when it left"
    await load.whole()


async def test_a_worker_killed_under_load_loses_nothing_and_answers_nothing_twice(load: Load, crew: Crew) -> None:
    name, process = crew.any()
    (other,) = crew.processes().keys() - {name}
    await load.send_to_all(400)
    await until(lambda: load.workers()[crew.ids(name)[-1]] > 20, "it is in the middle of its work")
    process.kill()
    await asyncio.to_thread(process.wait)
    assert len(load.answered) < load.sent, "there was still work when it died"
    await load.whole()
    assert f"took over from worker {crew.ids(name)[-1]}" in crew.log(other)


async def test_callers_of_a_gateway_notice_nothing_of_a_killed_worker(fleet: LocalFleet, crew: Crew) -> None:
    async with AsyncClient(fleet.gateway_url, retries=0) as client:
        calls = [asyncio.create_task(client.infer(vfm, [TEXT] * 20)) for vfm in VFMS for _ in range(15)]
        await until(lambda: sum(c.done() for c in calls) > 3, "the first are answered")
        _, process = crew.any()
        process.kill()
        await asyncio.to_thread(process.wait)
        results = await asyncio.gather(*calls)
    assert all(len(result) == 20 for result in results)


async def test_a_worker_that_stood_still_beyond_its_lease_begins_again(load: Load, crew: Crew, broker: object) -> None:
    name, process = crew.any()
    (other,) = crew.processes().keys() - {name}
    before = crew.ids(name)
    await load.send_to_all(400)
    await until(lambda: load.workers()[before[-1]] > 20, "it is in the middle of its work")
    with frozen(process):
        # The other one has judged it dead, and took its jobs.
        await until(lambda: f"took over from worker {before[-1]}" in crew.log(other), "the other took over")
    await load.whole()
    await until(lambda: len(crew.ids(name)) > len(before) and crew.serves(name), "it serves again")
    assert crew.ids(name)[-1] not in before, "under a new id"
    again = len(load.answered)

    async def more() -> bool:
        await load.send_to_all(50)
        await load.reaches(load.sent)
        return load.workers(since=again)[crew.ids(name)[-1]] > 0

    await until(more, "it takes work", 60)
    await load.whole()


async def test_a_late_worker_serves_what_was_deployed_before_it_came(load: Load, crew: Crew) -> None:
    old = crew.processes()
    late = crew.add()
    await load.send_to_all(100)
    await until(lambda: crew.serves(late), "the late worker serves")
    for process in old.values():
        process.send_signal(signal.SIGTERM)
    await until(lambda: all(p.poll() is not None for p in old.values()), "the others have left")
    before = len(load.answered)
    await load.send_to_all(25)
    await load.whole()
    newest = load.answered[-4 * 25 :]
    assert {vfm for _, vfm, _ in newest} == set(VFMS)
    assert set(load.workers(since=before)) == {crew.ids(late)[-1]}


async def test_without_any_worker_a_deployment_says_so_and_serves_once_one_comes(fleet: LocalFleet, crew: Crew) -> None:
    for process in crew.processes().values():
        process.send_signal(signal.SIGTERM)
    await until(lambda: not crew.processes(), "all workers have left")
    session = QueueClient.connect(fleet.broker_url)
    spec = parse(VfmSpec, {"name": "early", "backbone": "minilm", "head": {"kind": "embedding"}})
    ArtifactStore(fleet.artifacts).put(bare(spec))
    with pytest.raises(NoWorker, match="no live worker hosts 'minilm'; 'early' serves as soon as one starts"):
        await session.registry.deploy(spec, bare(spec).digest, timeout_s=0.5)
    waiting = await session.submit("plain", [TEXT], timeout_ms=300_000)
    crew.add()
    async with AsyncClient(fleet.broker_url) as client:

        async def serves() -> bool:
            return (await client.vfms.show("early")).status == "serving"

        await until(serves, "it serves", 120)
        assert (await client.infer("early", TEXT)).output
        assert (await waiting[0].result()).output, "what waited is answered too"
        await client.vfms.remove("early")
    await session.close()
