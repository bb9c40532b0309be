"""Tuning jobs: what is ordered, looked through, asked for and read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fmplex_broker.errors import Busy, Conflict, InvalidInput, UnknownFile, UnknownTune
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.checkpoints import CheckpointStore
from fmplex_broker.specs.files import new_file_id
from fmplex_broker.specs.tune_records import STATUSES, TuneError, TuneStatus, Wish
from fmplex_broker.specs.tuning import checkpoint_id, new_tune_id
from fmplex_broker.streams import tunes
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.keys import REGISTRY_TUNES
from fmplex_broker.streams.registry import Registry
from tests.contract.harness import BACKBONE, Bench
from tests.support.tunes import ELSEWHERE, HERE, Hand, Orders, at, checkpoint


@pytest.fixture
async def orders(bench: Bench) -> Orders:
    orders = Orders(bench.redis, bench.scripts, BACKBONE)
    await orders.known()
    return orders


@pytest.fixture
async def hand(bench: Bench) -> Hand:
    worker = await bench.worker("w1")
    hand = Hand(bench.redis, bench.scripts, BACKBONE, worker.worker)
    assert await hand.take() is None
    return hand


# --- what is ordered --------------------------------------------------------------------------------------------------


async def test_what_is_ordered_is_found_as_it_was_ordered(orders: Orders) -> None:
    spec = await orders.spec(metadata={"night": "ü\0"}, seed=7, validation_file=await orders.file(), suffix="mine")
    made = await orders.add(spec)
    assert made == await orders.find(spec.id, "me")
    assert (made.spec, made.status) == (spec, "validating_files")
    now = (await orders.redis.time())[0]
    assert now - 5 <= made.created_at <= now + 1
    assert await orders.said(spec.id) == [f"Created fine-tuning job {spec.id}", "Validating files"]


async def test_ordering_twice_is_ordering_once(orders: Orders) -> None:
    made = await orders.ordered()
    assert await orders.add(made.spec) == made
    assert await orders.page("me") == ([made], False)


async def test_a_tuning_job_of_another_owner_is_not_there(orders: Orders) -> None:
    made = await orders.ordered("me")
    for name, owner in (
        (made.spec.id, "you"), (made.spec.id, "m"), (new_tune_id(), "me"), ("ftjob-x", "me"), ("", "me"), ("\udc80", "me"),
    ):  # fmt: skip
        with pytest.raises(UnknownTune):
            await orders.find(name, owner)
        with pytest.raises(UnknownTune):
            await orders.ask(name, owner, "cancel")
        with pytest.raises(UnknownTune):
            await orders.events(name, owner)
        with pytest.raises(UnknownTune):
            await orders.checkpoints(name, owner)
    assert await orders.page("you") == ([], False)
    assert await orders.status(made.spec.id) == "validating_files"


async def test_a_file_that_is_gone_cannot_be_ordered_and_nothing_is_left(orders: Orders) -> None:
    good = await orders.file()
    for files in ({"training_file": new_file_id()}, {"training_file": good, "validation_file": new_file_id()}):
        with pytest.raises(UnknownFile):
            await orders.ordered(**files)
    assert await orders.page("me") == ([], False)
    assert not await orders.files.held(good)
    left = [key async for key in orders.redis.scan_iter("*tune*")]
    assert left == []


async def test_too_many_open_tuning_jobs_of_one_owner(orders: Orders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunes, "MOST_OPEN", 2)
    first = await orders.ordered()
    await orders.ordered()
    with pytest.raises(Busy, match="2 open tuning jobs"):
        await orders.ordered()
    assert len((await orders.page("me"))[0]) == 2
    await orders.ordered("you")
    await orders.ask(first.spec.id, "me", "cancel")
    await orders.ordered()


async def test_while_workers_live_and_none_tunes_nothing_can_be_ordered(orders: Orders, bench: Bench) -> None:
    await bench.worker("w1")
    with pytest.raises(Conflict, match=r"worker\.tuning"):
        await orders.ordered()
    assert await orders.page("me") == ([], False)
    await Hand(bench.redis, bench.scripts, BACKBONE, "w1").take()
    await orders.ordered()


async def test_pages_newest_first_over_what_has_gone(orders: Orders) -> None:
    made = []
    for _ in range(6):
        made.insert(0, await orders.ordered())
        await asyncio.sleep(0.002)  # ids have the time in ms
    await orders.redis.delete(f"{{{BACKBONE}}}:tune:{made[1].spec.id}", f"{{{BACKBONE}}}:tune:{made[1].spec.id}:events")
    del made[1]
    assert await orders.page("me", 2) == (made[:2], True)
    assert await orders.page("me", 2, made[1].spec.id) == (made[2:4], True)
    assert await orders.page("me", 2, made[3].spec.id) == (made[4:], False)
    assert await orders.page("me", 5) == (made, False)
    assert await orders.page("me", 4) == (made[:4], True)
    with pytest.raises(InvalidInput):
        await orders.page("me", 2, "ftjob-1")


async def test_records_that_have_gone_leave_the_list_of_their_owner(orders: Orders) -> None:
    await orders.redis.zadd(REGISTRY_TUNES + "me", {f"ftjob-{1:012x}{'0' * 12} {BACKBONE}": 0})
    made = await orders.ordered()
    assert await orders.redis.zrange(REGISTRY_TUNES + "me", 0, -1) == [f"{made.spec.id} {BACKBONE}".encode()]


async def test_an_open_tuning_job_holds_its_files_until_it_ends(orders: Orders) -> None:
    other = await orders.file()
    made = await orders.ordered(validation_file=other)
    assert await orders.files.prune(3) == []
    await orders.ask(made.spec.id, "me", "cancel")
    assert sorted(await orders.files.prune(3)) == sorted([made.spec.training_file, other])


async def test_the_files_are_held_though_who_ordered_died_before_that(orders: Orders) -> None:
    made = await orders.ordered()
    await orders.files.release(made.spec.training_file, made.spec.id)
    await orders.take_unchecked(9)
    assert await orders.files.held(made.spec.training_file)


async def test_files_of_a_job_that_ended_while_it_was_taken_are_not_held_for_ever(orders: Orders) -> None:
    made = await orders.ordered()
    await orders.ask(made.spec.id, "me", "cancel")
    await orders._hold(made.spec)
    assert not await orders.files.held(made.spec.training_file)


# --- looking through files --------------------------------------------------------------------------------------------


async def test_what_nobody_looks_through_is_taken_once_and_again_after_its_lease(orders: Orders) -> None:
    made = {(await orders.ordered()).spec.id for _ in range(3)}
    first = await orders.take_unchecked(2)
    second = await orders.take_unchecked(2)
    assert {r.spec.id for r in first + second} == made
    assert await orders.take_unchecked(9) == []
    await orders.redis.zadd(f"{{{BACKBONE}}}:tunes:unchecked", {first[0].spec.id: 1})
    [again] = await orders.take_unchecked(9)
    assert (again.spec.id, again.checks) == (first[0].spec.id, 2)
    ahead = (await orders.redis.time())[0] * 1000 + 3_600_000  # before the clock was set back
    await orders.redis.zadd(f"{{{BACKBONE}}}:tunes:unchecked", {again.spec.id: ahead})
    assert [r.spec.id for r in await orders.take_unchecked(9)] == [again.spec.id]


async def test_files_that_are_in_order_queue_the_job(orders: Orders, hand: Hand) -> None:
    made = await orders.ordered()
    assert await hand.take() is None
    queued = await orders.checked(made, examples=12)
    assert (queued.status, queued.examples) == ("queued", 12)
    assert queued.queued_at is not None
    assert await orders.take_unchecked(9) == []
    assert (await hand.took()).id == made.spec.id


async def test_files_that_are_not_fail_it(orders: Orders) -> None:
    made = await orders.ordered()
    error = TuneError(code="invalid_input", message="line 3: no label", param="training_file")
    failed = await orders.checked(made, error)
    assert (failed.status, failed.error) == ("failed", error)
    assert failed.finished_at is not None
    assert (await orders.said(made.spec.id))[-1] == "line 3: no label"
    assert not await orders.files.held(made.spec.training_file)
    again = await orders.checked(made, examples=3)
    assert again == failed


# --- asking -----------------------------------------------------------------------------------------------------------

ANSWERS: dict[Wish, dict[TuneStatus, TuneStatus]] = {  # all others are refused
    "pause": {"queued": "paused", "running": "paused"},
    "resume": {"paused": "queued"},
    "cancel": dict.fromkeys(("validating_files", "queued", "running", "paused", "cancelled"), "cancelled"),
}


async def brought_to(orders: Orders, hand: Hand, status: TuneStatus) -> str:
    record = await orders.ordered()
    job = record.spec.id
    if status != "validating_files":
        await orders.checked(record, examples=1)
    if status in ("running", "succeeded", "failed"):
        held = await hand.took()
        if status in ("succeeded", "failed"):
            await hand.finish(held, status)
    elif status in ("paused", "cancelled"):
        await orders.ask(job, "me", "pause" if status == "paused" else "cancel")
    assert await orders.status(job) == status
    return job


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("wish", ["pause", "resume", "cancel"])
async def test_every_wish_in_every_state(orders: Orders, hand: Hand, status: TuneStatus, wish: Wish) -> None:
    job = await brought_to(orders, hand, status)
    before = await orders.find(job, "me")
    if (to := ANSWERS[wish].get(status)) is None:
        with pytest.raises(Conflict, match=status):
            await orders.ask(job, "me", wish)
        assert await orders.find(job, "me") == before
    else:
        asked = await orders.ask(job, "me", wish)
        assert asked.status == to
        assert (asked.finished_at is not None) == asked.ended
        if wish == "cancel":
            assert await orders.ask(job, "me", wish) == asked


async def test_what_is_paused_is_taken_by_nobody_until_it_is_resumed(orders: Orders, hand: Hand) -> None:
    job = await orders.queued()
    await orders.ask(job, "me", "pause")
    assert await hand.take() is None
    await orders.ask(job, "me", "resume")
    assert (await hand.took()).id == job


@pytest.mark.parametrize(("wish", "asked", "end"), [("pause", "pause", "paused"), ("cancel", "cancel", "cancelled")])
async def test_who_has_a_job_in_hand_is_told_and_what_it_learnt_is_kept(
    orders: Orders, hand: Hand, wish: Wish, asked: str, end: TuneStatus
) -> None:
    job = await orders.queued()
    held = await hand.took()
    assert (await hand.save(held, at(1))).asked == ""
    assert (await orders.ask(job, "me", wish)).status == end
    assert (await hand.save(held, at(2))).asked == asked
    assert await hand.take(job) is None, "it is in hand still"
    await hand.release(held, at(3), checkpoint(3))
    now = await orders.find(job, "me")
    assert (now.status, now.worker, now.progress.step, [c.step for c in now.checkpoints]) == (end, None, 3, [3])
    assert await hand.take() is None
    assert await orders.files.held(now.spec.training_file) == (end == "paused")


async def test_a_cancelled_job_stays_that_whatever_its_worker_says(orders: Orders, hand: Hand) -> None:
    job = await orders.queued()
    held = await hand.took()
    at_once = await orders.ask(job, "me", "cancel")
    assert await orders.files.held(at_once.spec.training_file), "its worker may read it still"
    assert (await hand.finish(held, "succeeded", published=("new", "v1"))).asked == "cancel"
    now = await orders.find(job, "me")
    assert (now.status, now.finished_at, now.vfm) == ("cancelled", at_once.finished_at, "new")
    assert not await orders.files.held(at_once.spec.training_file)


async def test_a_pause_that_is_taken_back_before_anybody_saw_it(orders: Orders, hand: Hand) -> None:
    job = await orders.queued()
    held = await hand.took()
    await orders.ask(job, "me", "pause")
    assert (await orders.ask(job, "me", "resume")).status == "running"
    assert (await hand.save(held)).asked == ""
    await orders.ask(job, "me", "pause")
    assert (await hand.save(held)).asked == "pause"
    assert (await orders.ask(job, "me", "resume")).status == "running"
    await hand.release(held)  # it was about to
    assert await orders.status(job) == "queued"
    assert (await hand.took()).id == job


# --- events -----------------------------------------------------------------------------------------------------------


async def test_events_are_paged_exactly_while_new_ones_come(orders: Orders, hand: Hand) -> None:
    job = await orders.queued()
    held = await hand.took()
    for step in range(25):
        held.say(f"step {step}", data={"step": step, "train_loss": 1 / (step + 1)})
    await hand.save(held)
    every, more = await orders.events(job, "me", 1000)
    assert not more
    seen, after, more = [], "", True
    while more:
        page, more = await orders.events(job, "me", 4, after)
        assert len(page) == 4 or not more
        seen += page
        after = page[-1].id
        held.say("late")
        await hand.save(held)
    assert seen == every
    upward, more = await orders.events(job, "me", len(every), oldest_first=True)
    assert (upward, more) == (every[::-1], True)
    newer, more = await orders.events(job, "me", 100, every[0].id, oldest_first=True)
    assert {event.message for event in newer} == {"late"}
    metrics = next(event for event in every if event.message == "step 24")
    assert (metrics.kind, metrics.data, metrics.level) == ("metrics", {"step": 24, "train_loss": 0.04}, "info")
    assert metrics.shown()["type"] == "metrics"
    for wrong in ("ftevent-1", "\udc80", job):
        with pytest.raises(InvalidInput):
            await orders.events(job, "me", 4, wrong)


async def test_a_job_keeps_ten_thousand_events(orders: Orders, hand: Hand) -> None:
    job = await orders.queued()
    held = await hand.took()
    for i in range(10_050):
        held.say(str(i))
        if i % 1000 == 999:
            await hand.save(held)
    await hand.save(held)
    key = f"{{{BACKBONE}}}:tune:{job}:events"
    assert await orders.redis.xlen(key) == 10_000
    [last], _ = await orders.events(job, "me", 1)
    [first], _ = await orders.events(job, "me", 1, oldest_first=True)
    assert (first.message, last.message) == ("50", "10049")


async def test_numbers_that_are_none_are_told_as_nothing(orders: Orders, hand: Hand) -> None:
    job = await orders.queued()
    held = await hand.took()
    held.say("step 1", "warn", {"train_loss": float("nan")})
    await hand.save(held, at(1, loss=float("inf")), checkpoint(1).model_copy(update={"loss": float("nan")}))
    [event], _ = await orders.events(job, "me", 1)
    now = await orders.find(job, "me")
    assert (event.data, now.progress.loss, now.checkpoints[0].loss) == ({"train_loss": None}, None, None)


async def test_a_job_says_why_it_waits(orders: Orders, bench: Bench) -> None:
    job = await orders.queued()
    assert (await orders.said(job))[-1].startswith("Waiting: no worker of this backbone runs")
    worker = await bench.worker("w1")
    assert (await orders.said(job))[-1].startswith("Waiting: tuning is off on every worker")
    hand = Hand(bench.redis, bench.scripts, BACKBONE, worker.worker)
    held = await hand.took()
    await hand.save(held, at(1), checkpoint(1))
    await bench.lapse(worker)
    assert (await orders.said(job))[-1].startswith("Waiting: no worker of this backbone runs")
    other = await bench.worker("w2")
    assert (await other.reap(10**6, max_attempts=3)).victim == "w1"
    assert await Hand(bench.redis, bench.scripts, BACKBONE, "w2").take(place=ELSEWHERE) is None
    for _ in range(3):
        said = await orders.said(job)
        assert said[-1].startswith(f"Waiting: it was begun at {HERE.fingerprint}"), "once"
        assert said[-2].startswith("Worker w1 has ended")


# --- checkpoints, and the end -----------------------------------------------------------------------------------------


async def test_checkpoints_are_listed_newest_first(orders: Orders, hand: Hand) -> None:
    job = await orders.queued()
    held = await hand.took()
    for step in (10, 20, 30, 40):
        await hand.save(held, at(step), checkpoint(step, best=step == 20))
    steps = [40, 30, 20]
    found, more = await orders.checkpoints(job, "me")
    assert ([c.step for c in found], more) == (steps, False)
    first, more = await orders.checkpoints(job, "me", 2)
    assert ([c.step for c in first], more) == (steps[:2], True)
    rest, more = await orders.checkpoints(job, "me", 2, checkpoint_id(job, 30))
    assert ([c.step for c in rest], more) == (steps[2:], False)
    with pytest.raises(InvalidInput):
        await orders.checkpoints(job, "me", 2, checkpoint_id(job, 10))
    assert found[0].shown(job, "new")["fine_tuned_model_checkpoint"] == f"new@{checkpoint_id(job, 40)}"


async def test_what_has_ended_leaves_its_record_for_thirty_days_and_nothing_else(orders: Orders, hand: Hand) -> None:
    job = await orders.queued()
    held = await hand.took()
    held.say("done")
    await hand.finish(held, "succeeded", progress=at(9), published=("new", "v1"), result_files=["file-" + "0" * 24])
    now = await orders.find(job, "me")
    shown = now.shown()
    assert (shown["status"], shown["fine_tuned_model"], shown["version"]) == ("succeeded", "new", "v1")
    assert (shown["trained_tokens"], shown["result_files"]) == (90, ["file-" + "0" * 24])
    keys = {key.decode() async for key in orders.redis.scan_iter("*tune*")}
    record = f"{{{BACKBONE}}}:tune:{job}"
    assert keys == {record, f"{record}:events", REGISTRY_TUNES + "me", f"{{{BACKBONE}}}:tunes:clock"}
    for key in (record, f"{record}:events"):
        assert 29 * 86_400_000 < await orders.redis.pttl(key) <= 30 * 86_400_000


async def test_checkpoints_go_with_the_record_of_their_job(orders: Orders, tmp_path: Path) -> None:
    job, forgotten = await orders.queued(), new_tune_id()
    store = CheckpointStore(str(tmp_path))
    for one in (job, forgotten):
        store.put(one, "10-w1", "state", b"s")
    deployer = Deployer(Registry(orders.redis, orders.scripts), ArtifactStore(str(tmp_path)))
    assert await deployer.prune(0.0) == []
    assert store.jobs() == [job]
    await orders.ask(job, "me", "cancel")
    await deployer.prune(0.0)
    assert store.jobs() == [job], "what was learnt is kept"
