"""Tuning jobs in the hands of workers: claims, fences, take-over, attempts, deaths, and that everything counts once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.specs.tune_records import TuneEnd, TuneError
from fmplex_broker.streams.connection import Arg, Scripts
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.tune_owner import HeldTune, TuneLost
from tests.contract.harness import BACKBONE, Bench, job
from tests.support.tunes import ELSEWHERE, HERE, MOST, Hand, Orders, at, checkpoint

STEADY = 10**6  # ms for which the judge has beaten without a gap


class Fleet:
    """Workers that tune, and one that judges who is dead."""

    def __init__(self, bench: Bench, orders: Orders) -> None:
        self.bench = bench
        self.orders = orders
        self._lives = 0

    async def worker(self) -> tuple[Consumer, Hand]:
        self._lives += 1
        worker = await self.bench.worker(f"w{self._lives}")
        return worker, Hand(self.bench.redis, self.bench.scripts, BACKBONE, worker.worker)

    async def hand(self) -> Hand:
        return (await self.worker())[1]

    async def dies(self, worker: Consumer) -> None:
        """Let a worker die, and another one take over from it."""
        await self.bench.lapse(worker)
        judge = await self.bench.worker(f"judge of {worker.worker}")
        while (got := await judge.reap(STEADY, max_attempts=MOST)).more:
            pass
        assert got.victim == worker.worker
        await judge.leave()


@pytest.fixture
async def orders(bench: Bench) -> Orders:
    orders = Orders(bench.redis, bench.scripts, BACKBONE)
    await orders.known()
    return orders


@pytest.fixture
def fleet(bench: Bench, orders: Orders) -> Fleet:
    return Fleet(bench, orders)


class Broken(Scripts):
    """Scripts whose next call of a name arrives, and whose answer does not; or is kept on its way until `arrive`."""

    def __init__(self, scripts: Scripts, name: str, *, late: bool = False) -> None:
        self._real = scripts
        self._name = name
        self._late = late
        self._kept: tuple[str, str, Sequence[Arg]] | None = None
        self.broken = 0

    async def __call__(self, name: str, vfms_key: str, args: Sequence[Arg], *, within_s: float | None = None) -> Any:
        if name != self._name or self.broken:
            return await self._real(name, vfms_key, args, within_s=within_s)
        self.broken += 1
        if self._late:
            self._kept = (name, vfms_key, args)
        else:
            await self._real(name, vfms_key, args)
        raise BrokerUnavailable("not within 2 s")

    async def arrive(self) -> Any:
        """Let what was kept arrive; nothing happens if nothing was."""
        return await self._real(*self._kept) if self._kept is not None else None


def broken(fleet: Fleet, hand: Hand, name: str, *, late: bool = False) -> tuple[Hand, Broken]:
    scripts = Broken(fleet.bench.scripts, name, late=late)
    return Hand(fleet.bench.redis, scripts, BACKBONE, hand._worker), scripts


# --- claims -----------------------------------------------------------------------------------------------------------


async def test_a_job_has_one_worker(orders: Orders, fleet: Fleet) -> None:
    jobs = {await orders.queued() for _ in range(3)}
    one, two = await fleet.hand(), await fleet.hand()
    a, b = await one.took(), await two.took()
    c = await one.took(a.id)
    assert {a.id, b.id, c.id} == jobs
    assert await two.take(b.id) is None
    now = await orders.find(a.id, "me")
    assert (now.status, now.worker, now.fingerprint) == ("running", "w1", HERE.fingerprint)
    assert now.started_at is not None


async def test_who_has_no_lease_takes_nothing(orders: Orders, fleet: Fleet) -> None:
    await orders.queued()
    worker, hand = await fleet.worker()
    await fleet.bench.lapse(worker)
    assert await hand.take() is None
    assert await Hand(fleet.bench.redis, fleet.bench.scripts, BACKBONE, "nobody").take() is None
    await worker.beat()
    assert await hand.take() is not None


async def test_owners_share_workers_by_what_their_jobs_have_learnt(orders: Orders, fleet: Fleet) -> None:
    """Of two owners who order at once each has a worker; then who has had least for the weights of his jobs comes next."""
    mine = [await orders.queued("me") for _ in range(3)]
    yours = [await orders.queued("you", weight=2.0) for _ in range(3)]
    hand = await fleet.hand()
    first, second = await hand.took(), await hand.took(mine[0])
    assert {first.id, second.id} == {mine[0], yours[0]}, "the oldest of each"
    for held in (first, second):
        await hand.save(held, at(10))
        await hand.finish(held, "succeeded")
    order = []
    for _ in range(4):
        held = await hand.took()
        order.append("you" if held.id in yours else "me")
        await hand.finish(held, "succeeded", progress=at(10))
    assert order[:2] == ["you", "me"], "100 tokens at weight 2 are 50"
    assert order.count("you") == 2


async def test_who_was_idle_has_saved_nothing_up(orders: Orders, fleet: Fleet) -> None:
    hand = await fleet.hand()
    assert await hand.take() is None
    for _ in range(3):
        await orders.queued("busy")
        held = await hand.took()
        await hand.finish(held, "succeeded", progress=at(100))
    for _ in range(2):
        await orders.queued("busy")
        await orders.queued("new")
    owners = []
    for _ in range(4):
        held = await hand.took()
        owners.append(held.record.spec.owner)
        await hand.finish(held, "succeeded", progress=at(100))
    assert sorted(owners[:2]) == ["busy", "new"]


async def test_a_claim_whose_answer_was_lost_is_answered_by_the_next(orders: Orders, fleet: Fleet) -> None:
    ids = [await orders.queued(), await orders.queued()]
    hand = await fleet.hand()
    cut, _ = broken(fleet, hand, "tune_claim")
    with pytest.raises(BrokerUnavailable):
        await cut.take()
    held = await cut.took()
    assert (held.id, held.record.attempts) == (ids[0], 0)
    await cut.save(held, at(1))
    assert (await cut.took(held.id)).id == ids[1]


async def test_a_claim_that_comes_after_the_next_takes_nothing(orders: Orders, fleet: Fleet) -> None:
    await orders.queued()
    later = await orders.queued()
    cut, scripts = broken(fleet, await fleet.hand(), "tune_claim", late=True)
    with pytest.raises(BrokerUnavailable):
        await cut.take()
    await cut.took()
    assert (await scripts.arrive())[0] == b"stale"
    assert await orders.status(later) == "queued"


async def test_a_job_that_was_dropped_while_the_lease_had_run_out_is_had_again(orders: Orders, fleet: Fleet) -> None:
    await orders.queued()
    worker, hand = await fleet.worker()
    old = await hand.took()
    for _ in range(3):
        await hand.save(old, at(1))
    await fleet.bench.lapse(worker)
    with pytest.raises(TuneLost):
        await hand.save(old, at(2))
    await worker.beat()
    new = await hand.took()
    assert (new.id, new.record.attempts) == (old.id, 0)
    with pytest.raises(TuneLost):
        await hand.save(old, at(9))
    await hand.save(new, at(3))
    assert (await orders.find(new.id, "me")).progress.step == 3


# --- fences -----------------------------------------------------------------------------------------------------------

ENDS: list[TuneEnd] = ["succeeded", "failed", "cancelled"]


async def refused(hand: Hand, held: HeldTune) -> None:
    held.say("I was here")
    for call in (
        hand.save(held, at(99), checkpoint(99)),
        hand.release(held, at(99)),
        *(hand.finish(held, end, progress=at(99), published=("x", "y")) for end in ENDS),
    ):
        with pytest.raises(TuneLost):
            await call


@pytest.mark.parametrize("fate", ["expired", "condemned", "taken over", "released and taken again"])
async def test_who_has_lost_a_job_changes_nothing(orders: Orders, fleet: Fleet, fate: str) -> None:
    job = await orders.queued()
    worker, hand = await fleet.worker()
    held = await hand.took()
    await hand.save(held, at(1), checkpoint(1))
    new = None
    if fate == "expired":
        await fleet.bench.lapse(worker)
    elif fate == "released and taken again":
        await hand.release(held)
        new = await hand.took()
    else:
        await fleet.dies(worker)
        if fate == "taken over":
            new = await (await fleet.hand()).took()
    before = await orders.find(job, "me")
    await refused(hand, held)
    assert await orders.find(job, "me") == before
    assert "I was here" not in await orders.said(job)
    assert before.status == ("running" if fate != "condemned" or new else before.status)


async def test_an_old_save_that_comes_after_a_newer_one_changes_nothing(orders: Orders, fleet: Fleet) -> None:
    job = await orders.queued()
    hand = await fleet.hand()
    held = await hand.took()
    cut, scripts = broken(fleet, hand, "tune_save", late=True)
    held.say("once")
    with pytest.raises(BrokerUnavailable):
        await cut.save(held, at(1), checkpoint(1))
    await cut.save(held, at(2))
    before = await orders.find(job, "me")
    assert (await scripts.arrive())[0] == b"ok"
    assert await orders.find(job, "me") == before
    assert before.progress.step == 2
    assert [c.step for c in before.checkpoints] == [1], "the next save has said it"
    assert (await orders.said(job)).count("once") == 1


async def test_a_save_whose_answer_was_lost_is_repeated_without_harm(orders: Orders, fleet: Fleet) -> None:
    job = await orders.queued()
    hand = await fleet.hand()
    held = await hand.took()
    cut, _ = broken(fleet, hand, "tune_save")
    held.say("once")
    with pytest.raises(BrokerUnavailable):
        await cut.save(held, at(1), checkpoint(1))
    for _ in range(2):
        await cut.save(held, at(1), checkpoint(1))
    now = await orders.find(job, "me")
    assert [c.step for c in now.checkpoints] == [1]
    assert (await orders.said(job)).count("once") == 1


@pytest.mark.parametrize("end", ["release", *ENDS])
async def test_an_end_whose_answer_was_lost_is_repeated_without_harm(orders: Orders, fleet: Fleet, end: Any) -> None:
    job = await orders.queued()
    hand = await fleet.hand()
    held = await hand.took()
    cut, _ = broken(fleet, hand, "tune_save")

    async def ends() -> None:
        held.say("the end")
        if end == "release":
            await cut.release(held, at(5), checkpoint(5))
        else:
            error = TuneError(code="job_failed", message="no") if end == "failed" else None
            await cut.finish(held, end, progress=at(5), error=error)

    with pytest.raises(BrokerUnavailable):
        await ends()
    before = await orders.find(job, "me")
    await ends()
    assert await orders.find(job, "me") == before
    assert before.status == ("queued" if end == "release" else end)
    assert (before.error is not None) == (end == "failed")
    assert (await orders.said(job)).count("the end") == 1
    assert not await orders.files.held(before.spec.training_file) or end == "release"


async def test_many_events_go_in_parts_and_each_once(orders: Orders, fleet: Fleet) -> None:
    job = await orders.queued()
    hand = await fleet.hand()
    held = await hand.took()
    cut, _ = broken(fleet, hand, "tune_save")
    words = [f"step {i}" for i in range(450)]
    for word in words:
        held.say(word)
    with pytest.raises(BrokerUnavailable):
        await cut.save(held)
    await cut.save(held)
    assert [word for word in await orders.said(job) if word.startswith("step")] == words


async def test_a_full_server_lets_tuning_jobs_go_on_and_end(real: Bench) -> None:
    orders = Orders(real.redis, real.scripts, BACKBONE)
    await orders.known()
    first, second = await orders.queued(), await orders.queued()
    worker = await real.worker("w1")
    hand = Hand(real.redis, real.scripts, BACKBONE, worker.worker)
    await real.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(BrokerUnavailable):
            await orders.ordered()
        held = await hand.took()
        assert await worker.mark([], tuning=first)
        held.say("still here")
        await hand.save(held, at(1), checkpoint(1))
        await orders.ask(first, "me", "pause")
        assert (await hand.release(held)).asked == "pause"
        await orders.ask(second, "me", "cancel")
        await orders.ask(first, "me", "resume")
        await hand.finish(await hand.took(), "succeeded", progress=at(2))
    finally:
        await real.redis.config_set("maxmemory", 0)
    assert (await orders.status(first), await orders.status(second)) == ("succeeded", "cancelled")
    assert "still here" in await orders.said(first)


# --- take-over --------------------------------------------------------------------------------------------------------


async def test_the_job_of_a_worker_that_has_ended_goes_on_from_its_last_checkpoint(
    orders: Orders, fleet: Fleet
) -> None:
    job = await orders.queued()
    worker, hand = await fleet.worker()
    held = await hand.took()
    await hand.save(held, at(10), checkpoint(10))
    await hand.save(held, at(14))
    other = await fleet.hand()
    assert await other.take() is None, "its worker lives"
    await fleet.bench.lapse(worker)
    assert await other.take() is None, "it may be alive, and revive its lease"
    await fleet.dies(worker)
    again = await other.took()
    assert (again.id, again.record.attempts, again.record.deaths) == (job, 1, 0)
    assert again.record.last == checkpoint(10).model_copy(update={"created_at": held.checkpoints[0].created_at})
    assert "goes on from its checkpoint of step 10" in " ".join(await orders.said(job))


async def test_attempts_are_takeovers_since_the_last_new_checkpoint(orders: Orders, fleet: Fleet) -> None:
    job = await orders.queued()
    for attempt in (0, 1, 2):
        worker, hand = await fleet.worker()
        held = await hand.took()
        assert held.record.attempts == attempt
        if attempt == 2:
            await hand.save(held, at(5), checkpoint(5))
        await fleet.dies(worker)
    for attempt in (1, 2):
        worker, hand = await fleet.worker()
        held = await hand.took()
        assert held.record.attempts == attempt
        await hand.save(held, at(5), checkpoint(5))  # not a new one
        await fleet.dies(worker)
    assert await (await fleet.hand()).take() is None
    failed = await orders.find(job, "me")
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error.code == "poisoned"
    assert f"ended {MOST} times" in failed.error.message
    assert [c.step for c in failed.checkpoints] == [5], "what was learnt is kept"
    assert not await orders.files.held(failed.spec.training_file)


async def test_who_gives_back_or_leaves_in_order_costs_no_attempt(orders: Orders, fleet: Fleet) -> None:
    job = await orders.queued()
    for leaves in (False, True, True):
        worker, hand = await fleet.worker()
        held = await hand.took()
        assert (held.id, held.record.attempts) == (job, 0)
        if not leaves:
            await hand.release(held)
        await worker.mark([], tuning=job)
        await worker.leave()
    now = (await (await fleet.hand()).took()).record
    assert (now.attempts, now.deaths) == (0, 0)


@pytest.mark.parametrize(("wish", "end"), [("pause", "paused"), ("cancel", "cancelled")])
async def test_a_job_whose_worker_died_after_it_was_asked_for_stays_so(
    orders: Orders, fleet: Fleet, wish: Any, end: str
) -> None:
    job = await orders.queued()
    worker, hand = await fleet.worker()
    await hand.took()
    await orders.ask(job, "me", wish)
    await fleet.dies(worker)
    other = await fleet.hand()
    assert await other.take() is None
    now = await orders.find(job, "me")
    assert (now.status, now.worker) == (end, None)
    if wish == "pause":
        await orders.ask(job, "me", "resume")
        assert (await other.took()).record.attempts == 1
    else:
        await other.take()
        assert not await orders.files.held(now.spec.training_file)


async def test_what_was_resumed_though_its_worker_is_dead_goes_on_elsewhere(orders: Orders, fleet: Fleet) -> None:
    job = await orders.queued()
    worker, hand = await fleet.worker()
    await hand.took()
    await orders.ask(job, "me", "pause")
    await fleet.dies(worker)
    assert (await orders.ask(job, "me", "resume")).status == "running"
    assert (await (await fleet.hand()).took()).id == job


async def test_a_job_with_a_checkpoint_goes_on_at_a_place_like_its_own_only(orders: Orders, fleet: Fleet) -> None:
    job = await orders.queued()
    hand = await fleet.hand()
    for place in (HERE, ELSEWHERE):  # nothing is learnt yet
        held = await hand.took(place=place)
        assert held.record.fingerprint == place.fingerprint
        await hand.release(held)
    held = await hand.took(place=HERE)
    await hand.release(held, at(3), checkpoint(3))
    behind = await orders.queued()
    assert (await hand.took(place=ELSEWHERE)).id == behind, "it keeps no other from being taken"
    assert (await hand.took(behind, place=HERE)).id == job


# --- deaths -----------------------------------------------------------------------------------------------------------


async def test_a_death_in_a_unit_is_the_fault_of_that_job_alone(orders: Orders, fleet: Fleet) -> None:
    """Also of nothing that was prepared, ran or was loaded meanwhile."""
    bench = fleet.bench
    await bench.serve("a")
    mine, other = await orders.queued(), await orders.queued()
    worker, hand = await fleet.worker()
    assert {(await hand.took()).id, (await hand.took(mine)).id} == {mine, other}
    await bench.enqueue(job(id="run"), job(id="new"))
    claimed = await bench.claimed(worker)
    await worker.loading("a", "v1", "begin")
    await worker.mark(claimed[:1], preparing=True, tuning=mine)
    await fleet.dies(worker)
    judge, second = await fleet.worker()
    assert {j.job: j.attempts for j in await bench.claimed(judge)} == {"run": 1, "new": 1}
    deaths, _ = await judge.loading("a", "v1", "begin")
    assert deaths == 0
    held = [await second.took(), await second.took(mine, other)]
    assert {h.id: h.record.deaths for h in held} == {mine: 1, other: 0}
    assert {h.id: h.alone for h in held} == {mine: True, other: False}


async def test_a_death_after_the_unit_is_not(orders: Orders, fleet: Fleet) -> None:
    bench = fleet.bench
    await bench.serve("a")
    tuned = await orders.queued()
    worker, hand = await fleet.worker()
    await hand.took()
    await bench.enqueue(job(id="run"))
    claimed = await bench.claimed(worker)
    await worker.mark([], tuning=tuned)
    await worker.mark(claimed)
    await fleet.dies(worker)
    judge, second = await fleet.worker()
    assert {j.job: j.attempts for j in await bench.claimed(judge)} == {"run": 2}
    held = await second.took()
    assert (held.record.deaths, held.record.attempts) == (0, 1)


async def test_a_mark_of_a_job_in_other_hands_blames_it_not(orders: Orders, fleet: Fleet) -> None:
    tuned = await orders.queued()
    worker, hand = await fleet.worker()
    await hand.release(await hand.took())
    other = await fleet.hand()
    await other.took()
    await worker.mark([], tuning=tuned)
    await fleet.dies(worker)
    assert (await orders.find(tuned, "me")).deaths == 0


async def test_after_a_death_a_job_is_had_only_where_nothing_is_in_hand(orders: Orders, fleet: Fleet) -> None:
    tuned = await orders.queued()
    worker, hand = await fleet.worker()
    held = await hand.took(idle=False)
    await hand.save(held, at(1), checkpoint(1))
    await worker.mark([], tuning=tuned)
    await fleet.dies(worker)
    other = await fleet.hand()
    for _ in range(2):
        assert await other.take(idle=False) is None
    assert [word for word in await orders.said(tuned) if "has nothing else in hand" in word] == [
        "Waiting: a worker has died of it; it goes on at one that has nothing else in hand"
    ]
    behind = await orders.queued()
    assert (await other.took(idle=False)).id == behind
    again = await other.took(behind, idle=True)
    assert (again.id, again.alone) == (tuned, True)
    await other.save(again, at(2), checkpoint(2))
    await other.release(again)
    assert await other.take(behind, idle=False) is None, "also after a new checkpoint"


async def test_a_job_that_kills_every_worker_costs_so_many_and_fails(orders: Orders, fleet: Fleet) -> None:
    tuned, fine = await orders.queued(), await orders.queued()
    for _ in range(MOST):
        worker, hand = await fleet.worker()
        assert (await hand.took()).id == tuned
        await worker.mark([], tuning=tuned)
        await fleet.dies(worker)
    assert (await (await fleet.hand()).took()).id == fine
    now = await orders.find(tuned, "me")
    assert (now.status, now.deaths) == ("failed", MOST)


# --- counting, checkpoints --------------------------------------------------------------------------------------------


async def test_tokens_count_once_whatever_is_learnt_again(orders: Orders, fleet: Fleet) -> None:
    tuned = await orders.queued()
    worker, hand = await fleet.worker()
    held = await hand.took()
    await hand.save(held, at(10), checkpoint(10))
    await hand.save(held, at(17))
    await fleet.dies(worker)
    other = await fleet.hand()
    held = await other.took()
    assert held.record.last is not None
    assert held.record.last.tokens == 100
    for step in range(11, 21):
        await other.save(held, at(step))
    await other.finish(held, "succeeded", progress=at(20))
    assert (await orders.find(tuned, "me")).shown()["trained_tokens"] == 200
    clock = float(await orders.redis.hget(f"{{{BACKBONE}}}:tunes:clock", "me"))
    assert clock == pytest.approx(170 + 100 + 2), "its owner pays for what devices did, and a bit for each claim"


async def test_the_best_and_the_last_two_checkpoints_are_kept(orders: Orders, fleet: Fleet) -> None:
    tuned = await orders.queued()
    hand = await fleet.hand()
    held = await hand.took()
    gone = []
    for step, best in ((1, True), (2, False), (3, True), (4, False), (5, False), (6, False)):
        saved = await hand.save(held, at(step), checkpoint(step, best=best))
        gone += [c.step for c in saved.dropped]
    assert gone == [1, 2, 4]
    assert [c.step for c in (await orders.find(tuned, "me")).checkpoints] == [3, 5, 6]
    cut, _ = broken(fleet, hand, "tune_save")
    with pytest.raises(BrokerUnavailable):
        await cut.save(held, at(7), checkpoint(7, best=True))
    assert [c.step for c in (await cut.save(held, at(8))).dropped] == [3, 5], "not before the record says so"
    assert [c.step for c in (await orders.find(tuned, "me")).checkpoints] == [6, 7]


async def test_the_files_of_a_checkpoint_of_another_take_are_not_kept_twice(orders: Orders, fleet: Fleet) -> None:
    """A step that was made again: the later files count, the earlier ones may go."""
    await orders.queued()
    hand = await fleet.hand()
    held = await hand.took()
    await hand.save(held, at(1), checkpoint(1, name="1-a"))
    saved = await hand.save(held, at(1), checkpoint(1, name="1-b"))
    assert [c.name for c in saved.dropped] == ["1-a"]
    assert [c.name for c in held.checkpoints] == ["1-b"]
