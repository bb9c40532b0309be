"""claim: given-back jobs first, then across all ready flows in order of virtual time, bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from fmplex_broker.errors import BrokerFault
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from tests.contract.harness import Bench, answer, job


async def served(bench: Bench, worker: Consumer, jobs: int, room: int) -> list[Claimed]:
    """Claim and settle until that many jobs have gone through."""
    out: list[Claimed] = []
    while len(out) < jobs:
        got = await bench.claimed(worker, min(room, jobs - len(out)))
        assert got, "the flows ran dry"
        await worker.settle([(j, answer()) for j in got])
        out += got
    return out


def units_of(jobs: list[Claimed]) -> Counter[str]:
    units: Counter[str] = Counter()
    for j in jobs:
        units[j.flow.vfm] += j.units
    return units


# --- state ------------------------------------------------------------------------------------------------------------


async def test_lost_without_a_live_lease(bench: Bench) -> None:
    await bench.serve("a")
    await bench.enqueue(job())
    stranger = Consumer(bench.redis, bench.scripts, "minilm", "stranger", lease_ms=1000)
    assert (await stranger.claim({INTERACTIVE: 1})).state == "lost"
    worker = await bench.worker()
    await bench.lapse(worker)
    claim = await worker.claim({INTERACTIVE: 1})
    assert (claim.state, claim.jobs) == ("lost", [])
    assert (await worker.beat()).alive
    assert len(await bench.claimed(worker)) == 1


async def test_lost_after_flushall_then_a_new_life_goes_on(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    [held] = await bench.claimed(worker)
    await bench.redis.flushall()
    assert (await worker.claim({INTERACTIVE: 1})).state == "lost"
    assert not (await worker.beat()).alive
    assert not await worker.recover([])
    assert not await worker.mark([held])
    assert await worker.settle([(held, answer())]) == [False]
    assert await worker.send_chunks([(held, b"chunk")]) == [False]
    assert await worker.release([held]) == 0
    assert await bench.names() == set()
    again = await bench.worker("w2")
    await bench.serve("a")
    await bench.enqueue(job())
    assert len(await bench.claimed(again)) == 1


async def test_stale_when_a_recovery_has_overtaken_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim of the old epoch was delayed on the network and lands after the recovery."""
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    await worker.recover([])
    monkeypatch.setattr(worker, "_epoch", 1)
    claim = await worker.claim({INTERACTIVE: 1})
    assert (claim.state, claim.jobs) == ("stale", [])
    assert set(await bench.ready()) == {"a"}
    monkeypatch.undo()
    assert len(await bench.claimed(worker)) == 1


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 8, 32])
async def test_shares_follow_weights(bench: Bench, room: int) -> None:
    for vfm, weight in (("one", 1), ("two", 2), ("five", 5)):
        await bench.serve(vfm, weight=weight)
        await bench.enqueue(*(job(vfm) for _ in range(150)))
    got = units_of(await served(bench, await bench.worker(), 160, room))
    assert got == {"one": pytest.approx(20, abs=3), "two": pytest.approx(40, abs=3), "five": pytest.approx(100, abs=6)}


@pytest.mark.parametrize("room", [1, 16])
async def test_shares_are_counted_in_units_not_jobs(bench: Bench, room: int) -> None:
    await bench.serve("short", "long")
    await bench.enqueue(*(job("short", units=10) for _ in range(300)), *(job("long", units=100) for _ in range(60)))
    got = units_of(await served(bench, await bench.worker(), 220, room))
    assert got["long"] == pytest.approx(got["short"], abs=300)


async def test_shares_hold_over_many_workers(bench: Bench) -> None:
    for vfm, weight in (("one", 1), ("four", 4)):
        await bench.serve(vfm, weight=weight)
        await bench.enqueue(*(job(vfm) for _ in range(200)))
    workers = [await bench.worker(f"w{i}") for i in range(3)]
    got: Counter[str] = Counter()
    for turn in range(25):
        got += units_of(await bench.claimed(workers[turn % 3], room=4))
    assert got == {"one": pytest.approx(20, abs=4), "four": pytest.approx(80, abs=4)}


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 3])
async def test_500_flows_share_by_weight_through_windows_of_128_jobs(real: Bench, workers: int) -> None:
    """Each within 5 %: Redis alone decides who enters a window, and no window has room for everybody."""
    weights = {f"v{i:03}": 1 + i % 8 for i in range(500)}
    each = 25  # jobs a unit of weight until the count ends; a tenth more are there
    for vfm, weight in weights.items():
        await real.serve(vfm, weight=weight)
    for vfm, weight in weights.items():
        await real.enqueue(*(job(vfm) for _ in range(weight * each * 11 // 10 + 2)))
    crew = [await real.worker(f"w{i}", lease_ms=600_000) for i in range(workers)]
    windows: list[list[Claimed]] = [[] for _ in crew]
    got: Counter[str] = Counter()
    while got.total() < each * sum(weights.values()):
        for worker, window in zip(crew, windows, strict=True):
            window += await real.claimed(worker, 128 - len(window))
            done, window[:] = window[:48], window[48:]  # a pass
            await worker.settle([(j, answer()) for j in done])
            got += Counter(j.flow.vfm for j in done)
    shares = {vfm: got[vfm] / weight / each for vfm, weight in weights.items()}
    assert min(shares.values()) >= 0.95, sorted(shares.items(), key=lambda share: share[1])[:5]
    assert max(shares.values()) <= 1.05, sorted(shares.items(), key=lambda share: share[1])[-5:]
    await real.redis.flushall()  # the look for keys that stay would go through 60,000 of them one by one


async def test_a_newcomer_starts_at_the_current_minimum(bench: Bench) -> None:
    """It neither waits for everybody's past nor gets all that others had before it came."""
    await bench.serve("old", "new")
    worker = await bench.worker()
    await bench.enqueue(*(job("old") for _ in range(300)))
    await served(bench, worker, 200, 8)
    await bench.enqueue(*(job("new") for _ in range(100)))
    assert (await bench.ready())["new"] == pytest.approx(200, abs=1)
    got = units_of(await served(bench, worker, 40, 4))
    assert got == {"old": pytest.approx(20, abs=3), "new": pytest.approx(20, abs=3)}


async def test_a_returning_flow_cannot_spend_saved_up_time(bench: Bench) -> None:
    await bench.serve("busy", "lazy")
    worker = await bench.worker()
    await bench.enqueue(*(job("busy") for _ in range(300)), job("lazy"))
    await served(bench, worker, 201, 8)  # lazy took one and slept
    await bench.enqueue(*(job("lazy") for _ in range(100)))
    got = units_of(await served(bench, worker, 40, 4))
    assert got == {"busy": pytest.approx(20, abs=3), "lazy": pytest.approx(20, abs=3)}


async def test_time_saved_while_all_were_idle_is_not_kept_either(bench: Bench) -> None:
    await bench.serve("busy", "lazy")
    worker = await bench.worker()
    await bench.enqueue(job("lazy"))
    await served(bench, worker, 1, 1)
    await bench.enqueue(*(job("busy") for _ in range(200)))
    await served(bench, worker, 200, 8)
    assert await bench.ready() == {}
    await bench.enqueue(*(job("lazy") for _ in range(50)), *(job("busy") for _ in range(50)))
    got = units_of(await served(bench, worker, 40, 4))
    assert got["lazy"] <= 20 + 8 + 3  # at most the last claim of busy is made up for


async def test_a_flow_that_empties_keeps_what_it_owes(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(*(job("a") for _ in range(8)), *(job("b") for _ in range(50)))
    await bench.enqueue(job("a", units=20))
    await served(bench, worker, 18, 2)  # a has had 8 + 20 units, b about 9
    await bench.enqueue(*(job("a") for _ in range(50)))
    got = units_of(await served(bench, worker, 10, 2))
    assert got["b"] >= 9


async def test_alter_of_the_weight_takes_effect_at_once(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(*(job(vfm) for vfm in "ab" for _ in range(200)))
    await served(bench, worker, 40, 8)
    await bench.scripts("alter", bench.keys.vfms, ["a", 2, "{}", 1000, 3.0, 0, 0])
    assert units_of(await served(bench, worker, 80, 8)) == {
        "a": pytest.approx(60, abs=5),
        "b": pytest.approx(20, abs=5),
    }


async def test_one_flow_alone_may_fill_the_room(bench: Bench) -> None:
    await bench.serve("a")
    await bench.enqueue(*(job() for _ in range(100)))
    assert len(await bench.claimed(await bench.worker(), room=64)) == 64


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_at_most_64_flows_a_call_then_more(bench: Bench) -> None:
    vfms = [f"v{i}" for i in range(100)]
    await bench.serve(*vfms)
    await bench.enqueue(*(job(v) for v in vfms for _ in range(2)))
    worker = await bench.worker()
    seen: Counter[str] = Counter()
    for _ in range(20):
        claim = await worker.claim({INTERACTIVE: 256})
        assert len({j.flow for j in claim.jobs}) <= 64
        seen.update(j.flow.vfm for j in claim.jobs)
        if not claim.more:
            break
    assert seen == Counter(dict.fromkeys(vfms, 2))


async def test_room_is_at_most_256_a_call(bench: Bench) -> None:
    await bench.serve("a")
    await bench.enqueue(*(job() for _ in range(300)))
    claim = await (await bench.worker()).claim({INTERACTIVE: 1000})
    assert (len(claim.jobs), claim.more) == (256, False)  # the room asked for is used up: nothing more to take into it


async def test_room_is_never_exceeded(bench: Bench) -> None:
    vfms = [f"v{i}" for i in range(10)]
    await bench.serve(*vfms)
    await bench.enqueue(
        *(job(v, cls=c, units=1 + i) for i, v in enumerate(vfms) for c in (INTERACTIVE, OFFLINE) for _ in range(9))
    )
    worker = await bench.worker()
    for room in (1, 2, 7, 13):
        got = Counter(j.flow.cls for j in await bench.claimed(worker, interactive=room, offline=3))
        assert got == {INTERACTIVE: room, OFFLINE: 3}
        await worker.recover([])
        got = Counter(j.flow.cls for j in await bench.claimed(worker, interactive=room, offline=3))  # from `back`
        assert got == {INTERACTIVE: room, OFFLINE: 3}


async def test_more_is_false_when_all_is_taken(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(job("a"), job("b"))
    claim = await worker.claim({INTERACTIVE: 10})
    assert (len(claim.jobs), claim.more) == (2, False)
    claim = await worker.claim({INTERACTIVE: 10})
    assert (claim.jobs, claim.more) == ([], False)


async def test_per_flow_room(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(*(job("a") for _ in range(10)), *(job("b") for _ in range(2)))
    claim = await worker.claim({INTERACTIVE: 100}, per_flow=3)
    assert Counter(j.flow.vfm for j in claim.jobs) == {"a": 3, "b": 2}
    assert claim.more
    await worker.recover([])
    claim = await worker.claim({INTERACTIVE: 100}, per_flow=3)  # three of a come from `back`, and are all it may give
    assert Counter(j.flow.vfm for j in claim.jobs) == {"a": 3, "b": 2}


async def test_rest_says_which_flows_have_more(bench: Bench) -> None:
    """What a worker needs to forfeit the credit of a flow that has emptied here and in its stream."""
    await bench.serve("a", "b", "c")
    worker = await bench.worker()
    await bench.enqueue(*(job("a") for _ in range(3)), *(job("b") for _ in range(2)))
    claim = await worker.claim({INTERACTIVE: 100}, per_flow=2)
    assert claim.rest == {Flow("a", INTERACTIVE): True, Flow("b", INTERACTIVE): False}
    await worker.release(claim.jobs)
    claim = await worker.claim({INTERACTIVE: 4})
    assert (len(claim.jobs), claim.rest) == (4, {})  # all of them given back: no stream was looked at
    claim = await worker.claim({INTERACTIVE: 4})
    assert claim.rest == {Flow("a", INTERACTIVE): False}


# --- classes ----------------------------------------------------------------------------------------------------------


async def test_each_class_has_its_own_room(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(*(job() for _ in range(5)), *(job(cls=OFFLINE) for _ in range(5)))
    assert [j.flow for j in await bench.claimed(worker, offline=2)] == [Flow("a", OFFLINE)] * 2
    claim = await worker.claim({INTERACTIVE: 3, OFFLINE: 1})
    assert [j.flow.cls for j in claim.jobs] == [INTERACTIVE] * 3 + [OFFLINE]
    assert [j.flow.cls for j in await bench.claimed(worker, interactive=9)] == [INTERACTIVE] * 2


async def test_given_back_offline_jobs_wait_for_offline_room(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(cls=OFFLINE))
    await worker.release(await bench.claimed(worker, offline=1))
    assert await bench.claimed(worker, interactive=5) == []
    assert len(await bench.claimed(worker, offline=1)) == 1


async def test_given_back_offline_flows_do_not_hide_interactive_ones(bench: Bench) -> None:
    """A worker died with offline jobs of very many vFMs; one without room for them must still find interactive work."""
    vfms = [f"v{i}" for i in range(80)]
    await bench.serve("a", *vfms)
    dead, worker = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job(v, cls=OFFLINE) for v in vfms), job("a", id="taken"))
    for _ in range(3):
        await bench.claimed(dead, interactive=256, offline=256)
    await bench.lapse(dead)
    assert (await worker.reap(10**6, max_attempts=3)).given_back == 81
    await bench.enqueue(job("a", id="waiting"))
    claims = [await worker.claim({INTERACTIVE: 10}) for _ in range(3)]
    assert {j.job for c in claims for j in c.jobs} == {"taken", "waiting"}
    assert not claims[-1].more  # nothing it has room for


# --- given back -------------------------------------------------------------------------------------------------------


async def test_back_comes_first_with_raised_attempts(bench: Bench) -> None:
    await bench.serve("a", "b")
    dead, worker = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job("a", id="ran"))
    await dead.mark(await bench.claimed(dead))
    await bench.lapse(dead)
    await worker.reap(10**6, max_attempts=3)
    await bench.enqueue(job("a", id="fresh a"), job("b", id="fresh b"))
    [first] = await bench.claimed(worker, room=1)
    assert (first.job, first.attempts) == ("ran", 2)
    assert {(j.job, j.attempts) for j in await bench.claimed(worker)} == {("fresh a", 1), ("fresh b", 1)}


async def test_back_is_left_when_empty_and_kept_while_not(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(*(job() for _ in range(3)))
    await worker.release(await bench.claimed(worker))
    claim = await worker.claim({INTERACTIVE: 2})
    assert (len(claim.jobs), await bench.back()) == (2, ["interactive:a"])
    claim = await worker.claim({INTERACTIVE: 2})
    assert (len(claim.jobs), claim.more, await bench.back()) == (1, False, [])


async def test_entries_deleted_under_back_are_passed_over(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(*(job() for _ in range(3)))
    jobs = await bench.claimed(worker)
    await worker.release(jobs)
    await bench.redis.xdel(bench.keys.queue(jobs[1].flow), jobs[1].entry)
    assert [j.job for j in await bench.claimed(worker)] == [jobs[0].job, jobs[2].job]
    assert len(await bench.pending()) == 2


# --- safety -----------------------------------------------------------------------------------------------------------


async def test_held_is_written_before_reading(bench: Bench) -> None:
    """If the script dies at the read, the reaper must still know where to look."""
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(job())
    await bench.redis.delete(bench.keys.queue(Flow("a", INTERACTIVE)))
    await bench.redis.set(bench.keys.queue(Flow("a", INTERACTIVE)), "no stream: reading it fails", px=5000)
    with suppress(BrokerFault):  # fakeredis stumbles over it in words of its own
        assert await bench.claimed(worker) == []
    assert await bench.redis.hexists(f"{bench.keys.prefix}held:{worker.worker}", "interactive:a")


async def destroy_group(bench: Bench) -> None:
    assert await bench.redis.xgroup_destroy(bench.keys.queue(Flow("a", INTERACTIVE)), "w") == 1


async def settle(worker: Consumer, held: list[Claimed]) -> None:
    assert await worker.settle([(j, answer()) for j in held]) == [False] * len(held)


async def release(worker: Consumer, held: list[Claimed]) -> None:
    assert await worker.release(held) == 0


async def recover(worker: Consumer, held: list[Claimed]) -> None:
    assert await worker.recover(held)


@pytest.mark.parametrize("touch", [settle, release, recover])
async def test_nogroup_anywhere_makes_the_group_and_marks_ready(
    bench: Bench, touch: Callable[[Consumer, list[Claimed]], Awaitable[None]]
) -> None:
    await bench.serve("a")
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.enqueue(job(), job())
    held = await bench.claimed(worker)
    rung = await bench.rings()
    await destroy_group(bench)
    await touch(worker, held)
    assert set(await bench.ready()) == {"a"}
    assert await bench.rings() > rung
    assert {j.job for j in await bench.claimed(other)} == {j.job for j in held}


async def test_nogroup_at_a_claim_costs_nothing(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(*(job(v) for v in "ab" for _ in range(2)))
    first = await bench.claimed(worker, room=2)
    await bench.enqueue(job("a"))
    await destroy_group(bench)
    got = await bench.claimed(worker)
    assert len({j.job for j in got + first}) == 5  # all five; what the group had forgotten is delivered again


async def test_nogroup_under_given_back_jobs(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(), job())
    await worker.release(await bench.claimed(worker))
    await destroy_group(bench)
    jobs = [j for _ in range(2) for j in await bench.claimed(worker)]
    assert (len(jobs), await bench.back()) == (2, [])


async def test_nogroup_at_a_reap(bench: Bench) -> None:
    await bench.serve("a")
    dead, worker = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job())
    await bench.claimed(dead)
    await destroy_group(bench)
    await bench.lapse(dead)
    assert (await worker.reap(10**6, max_attempts=3)).state == "ok"
    assert len(await bench.claimed(worker)) == 1


async def test_two_workers_never_hold_the_same_job(bench: Bench) -> None:
    await bench.serve("a", "b")
    await bench.enqueue(*(job("ab"[i % 2]) for i in range(60)))
    workers = [await bench.worker(f"w{i}") for i in range(3)]
    seen: Counter[str] = Counter()
    for turn in range(30):
        seen.update(j.job for j in await bench.claimed(workers[turn % 3], room=3))
    assert len(seen) == 60
    assert set(seen.values()) == {1}
