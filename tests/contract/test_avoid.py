"""claim without some vFMs: nothing is taken of them, and they stand in nobody's way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Literal

import pytest

from fmplex_broker.streams.claims import Claim
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from tests.contract.harness import Bench, answer, job

Order = Literal["fair", "arrival"]
ORDERS: tuple[Order, ...] = ("fair", "arrival")


async def ask(
    worker: Consumer, avoid: Collection[str], order: Order = "fair", *, room: int = 256, strangers: bool = True
) -> Claim:
    flows = [Flow(vfm, INTERACTIVE) for vfm in avoid]
    claim = await worker.claim({INTERACTIVE: room}, order=order, strangers=strangers, avoid=flows)
    assert claim.state == "ok"
    return claim


def vfms(claim: Claim) -> Counter[str]:
    return Counter(j.flow.vfm for j in claim.jobs)


@pytest.mark.parametrize("order", ORDERS)
async def test_avoided_flows_are_not_taken_and_others_are(bench: Bench, order: Order) -> None:
    await bench.serve("a", "b", "c")
    worker = await bench.worker()
    await bench.enqueue(*(job(v) for v in "aabbcc"))
    ready = await bench.ready()
    claim = await ask(worker, {"a", "c"}, order)
    assert (vfms(claim), claim.more, claim.wait_ms) == ({"b": 2}, False, 0)
    assert {flow.vfm for flow in claim.rest} == {"b"}
    assert await bench.ready() == {v: ready[v] for v in "ac"}
    assert vfms(await ask(worker, ["a"], order)) == {"c": 2}
    assert vfms(await ask(worker, (), order)) == {"a": 2}


@pytest.mark.parametrize("order", ORDERS)
async def test_with_nothing_else_ready_a_worker_sleeps(bench: Bench, order: Order) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(job("a"), job("b"), job("b"))
    await worker.release((await ask(worker, ["a"], room=1)).jobs)  # b: one given back, one ready
    claim = await ask(worker, ["a", "b"], order)
    assert (claim.jobs, claim.more, claim.wait_ms) == ([], False, 0)
    assert sum(vfms(await ask(worker, [], order)).values()) == 3


async def test_given_back_jobs_of_avoided_flows_stay(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(job("a"), job("b"))
    await worker.release((await ask(worker, [])).jobs)
    assert vfms(await ask(worker, ["a"])) == {"b": 1}
    assert await bench.back() == ["interactive:a"]
    assert [owner for owner, _ in (await bench.pending("a")).values()] == ["released"]
    claim = await ask(worker, [])
    assert ([j.attempts for j in claim.jobs], await bench.back()) == ([1], [])


async def test_one_class_of_a_vfm_and_not_the_other(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(*(job(v, cls=cls) for v in "ab" for cls in (INTERACTIVE, OFFLINE)))
    claim = await worker.claim({INTERACTIVE: 9, OFFLINE: 9}, avoid=[Flow("a", OFFLINE)])
    assert {j.flow for j in claim.jobs} == {("a", INTERACTIVE), ("b", INTERACTIVE), ("b", OFFLINE)}
    assert (await worker.claim({INTERACTIVE: 9, OFFLINE: 9}, avoid=[Flow("a", OFFLINE)])).jobs == []
    await worker.release(claim.jobs)
    claim = await worker.claim({INTERACTIVE: 9, OFFLINE: 9}, avoid=[Flow("a", INTERACTIVE)])
    assert {j.flow for j in claim.jobs} == {("a", OFFLINE), ("b", INTERACTIVE), ("b", OFFLINE)}


async def test_names_that_nobody_has_do_no_harm(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job("a"))
    assert vfms(await ask(worker, ["interactive", "offline", "7", "nobody", "b"])) == {"a": 1}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("strangers", [True, False])
async def test_many_avoided_flows_hide_nothing(bench: Bench, order: Order, strangers: bool) -> None:
    """They are in front of all others, ready and given back; one call still visits as many others as ever."""
    crowded = [f"c{i:03}" for i in range(300)]
    others = [f"o{i:03}" for i in range(100)]
    await bench.serve(*crowded, *others)
    worker = await bench.worker()
    if not strangers:
        await worker.announce_resident([*crowded, *others], [])
    await bench.enqueue(*(job(v) for v in crowded))
    given = [j for _ in range(5) for j in (await ask(worker, [])).jobs]
    assert len(given) == 300
    await bench.enqueue(*(job(v) for v in others[:30]))
    given += (await ask(worker, [])).jobs
    await worker.release(given)
    await bench.enqueue(*(job(v) for v in crowded), *(job(v) for v in others))
    ready, back = await bench.ready(), await bench.back()

    first = await ask(worker, crowded, order, strangers=strangers)
    assert len(first.jobs) >= 60  # of 64 visits: 30 to what was given back, one job each
    assert first.more
    seen = vfms(first)
    while (claim := await ask(worker, crowded, order, strangers=strangers)).jobs:
        seen += vfms(claim)
    assert seen == Counter(others) + Counter(others[:30])
    assert not claim.more  # though 300 flows are ready, and 300 have jobs given back
    assert await bench.ready() == {v: ready[v] for v in crowded}
    assert await bench.back() == [flow for flow in back if flow.endswith(tuple(crowded))]


async def test_the_order_of_the_others_is_as_if_it_were_not_there(bench: Bench) -> None:
    """Claim by claim, virtual time too."""
    weights = {"one": 1, "two": 2, "five": 5}
    worker = await bench.worker()
    served = []
    for crowded in ([], ["crowded"]):
        await bench.redis.flushall()
        worker = await bench.worker()
        for vfm, weight in weights.items():
            await bench.serve(vfm, weight=weight)
        await bench.serve("crowded", weight=3)
        if crowded:
            await bench.enqueue(*(job("crowded") for _ in range(50)))
        for vfm in weights:
            await bench.enqueue(*(job(vfm, units=1 + n % 3) for n in range(80)))
        claims = []
        for room in (1, 4, 7, 16, 16, 16, 32):
            claim = await ask(worker, crowded, room=room)
            await worker.settle([(j, answer()) for j in claim.jobs])
            claims.append((vfms(claim), {v: at for v, at in (await bench.ready()).items() if v != "crowded"}))
        served.append(claims)
    assert served[0] == served[1]
    assert (await bench.ready())["crowded"] == 0


async def test_an_avoided_flow_gets_its_turn_when_it_may_run_again(bench: Bench) -> None:
    """It has had less than its share, and makes up for it."""
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(*(job(v) for v in "ab" for _ in range(40)))
    assert vfms(await ask(worker, ["a"], room=20)) == {"b": 20}
    assert vfms(await ask(worker, [], room=30)) == {"a": 25, "b": 5}


async def test_a_flow_that_is_avoided_here_is_taken_by_another_worker(bench: Bench) -> None:
    await bench.serve("a")
    here, there = await bench.worker("here"), await bench.worker("there")
    await bench.enqueue(job("a"))
    assert vfms(await ask(here, ["a"])) == {}
    assert vfms(await ask(there, [])) == {"a": 1}
