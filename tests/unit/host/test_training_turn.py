"""The device task lends the device: to whom, until when, and what the broker knows meanwhile. On made-up time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from benchmarks import virtual_time
from benchmarks.simulated_parts import FULL_RATE
from benchmarks.simulated_worker import World
from benchmarks.virtual_time import Clock
from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from fmplex_broker.wire.passes import TRAINING
from fmplex_worker.host.device_thread import DeviceThread
from fmplex_worker.host.lease import LeaseLost
from fmplex_worker.host.training_books import TrainingBooks
from fmplex_worker.protocol import Outcome, Work
from tests.support.waiting import until

A = Flow("a", INTERACTIVE)


def in_world(test: Callable[[World], Coroutine[Any, Any, None]], **more: Any) -> None:
    """Run a test in a world of its own, whose device task runs."""

    async def main(clock: Clock) -> None:
        async with World(clock, **more) as world:
            await test(world)

    virtual_time.run(main)


def turn(world: World) -> Any:
    assert world.turn is not None
    return world.turn


def units_after(world: World, at: float) -> list[float]:
    return [when for when, what in world.device.log if what == "unit" and when > at]


def test_a_training_runs_to_its_end_and_says_so() -> None:
    async def test(world: World) -> None:
        job, run = world.training(batches=3)
        await turn(world).add(job)
        await job.news.wait()
        assert (job.ended, job.error, job.unit) == (True, None, None)
        assert run.ran.count("step") == 3
        stats = world.books.stats
        assert stats.units == {"forward": 6, "backward": 6, "loss": 3, "step": 3}
        assert sum(stats.seconds.values()) == pytest.approx(world.device.by["t"])
        assert stats.tokens == {"t": 3 * 128}
        assert (stats.jobs, turn(world).wanted) == (0, False)

    in_world(test)


def test_one_that_fails_ends_and_the_others_go_on() -> None:
    async def test(world: World) -> None:
        bad, bad_run = world.training("bad")
        good, good_run = world.training("good")
        bad_run.fails_at = 5
        await turn(world).add(bad)
        await turn(world).add(good)
        await bad.news.wait()
        assert isinstance(bad.error, ValueError)
        assert not bad.ended
        before = len(good_run.ran)
        await asyncio.sleep(2)
        assert len(good_run.ran) > before + 50
        assert len(bad_run.ran) == 5

    in_world(test)


def test_a_training_of_no_units_has_ended_at_once() -> None:
    async def test(world: World) -> None:
        job, _ = world.training(batches=0)
        await turn(world).add(job)
        assert job.ended
        assert job.news.is_set()

    in_world(test)


def test_a_snapshot_is_taken_between_two_units() -> None:
    async def test(world: World) -> None:
        job, run = world.training()
        await turn(world).add(job)
        run.due = True
        await job.news.wait()
        assert job.cut is not None
        assert (job.cut.step, job.best, job.ended) == (1, None, False)
        ran = len(run.ran)
        job.news.clear()
        job.cut = None
        await asyncio.sleep(1)
        assert len(run.ran) > ran

    in_world(test)


def test_who_is_removed_runs_no_more_than_the_unit_under_way() -> None:
    async def test(world: World) -> None:
        job, run = world.training()
        await turn(world).add(job)
        await asyncio.sleep(1.001)
        ran = len(run.ran)
        await turn(world).remove(job)
        assert len(run.ran) <= ran + 1
        assert world.clock() < 1.03
        await turn(world).remove(job)
        await asyncio.sleep(1)
        assert len(run.ran) <= ran + 1
        await turn(world).add(job)  # resumed
        await asyncio.sleep(1)
        assert len(run.ran) > ran + 10

    in_world(test)


def test_no_unit_begins_once_the_worker_drains() -> None:
    async def test(world: World) -> None:
        await turn(world).add(world.training()[0])
        world.come("a", target_ms=1000)  # so the device is lent for long
        await asyncio.sleep(1.01)
        turn(world).stop()
        await asyncio.sleep(3)
        assert units_after(world, 1.01) == []
        world.come("a")
        await asyncio.sleep(1)
        assert len(world.outbox.latencies[A]) == 2, "jobs are served to the end"

    in_world(test)


def test_who_comes_with_less_slack_cuts_a_loan_short() -> None:
    async def test(world: World) -> None:
        world.come("a", target_ms=1000)
        await asyncio.sleep(0.5)
        await turn(world).add(world.training()[0])
        await asyncio.sleep(0.03)
        world.come("b", target_ms=100)
        await asyncio.sleep(0.3)
        assert world.outbox.latencies[Flow("b", INTERACTIVE)][0] <= 0.1
        assert world.books.stats.halts == 1

    in_world(test)


def test_a_unit_longer_than_any_slack_does_not_run_and_that_can_be_told() -> None:
    async def test(world: World) -> None:
        job, run = world.training(scale=4.0)  # units of 100 ms
        await turn(world).add(job)
        await asyncio.sleep(5)  # nobody has a target: it may
        assert len(run.ran) > 50
        assert turn(world).unfit() is None
        await world.arrivals("a", 5, 3, target_ms=60)
        ran = len(run.ran)
        await world.arrivals("a", 5, 5, target_ms=60)
        assert len(run.ran) == ran
        told = turn(world).unfit()
        assert told is not None
        assert told[0] is job
        assert told[1] > told[2] > 0

    in_world(test)


def test_what_was_lent_is_told_to_who_traces() -> None:
    async def test(world: World) -> None:
        world.recorder.listen(True)
        job, _ = world.training("t", 2.0, batches=1)
        await turn(world).add(job)
        await job.news.wait()
        lent = world.recorder.drain() or []
        assert {(one.cls, one.number) for one in lent} == {(TRAINING, 0)}
        assert max(one.units for one in lent) == 128
        assert sum(part.jobs for one in lent for part in one.parts) == 6
        assert sum(one.seconds for one in lent) == pytest.approx(world.trained_s)
        assert {(part.vfm, part.weight) for one in lent for part in one.parts} == {("t", 2.0)}

    in_world(test)


class Engine:
    """Passes of a millisecond."""

    def step(self, work: Sequence[Work]) -> Outcome:
        time.sleep(0.001)
        return Outcome(0.001, ["done"] * len(work))


async def test_it_is_so_on_a_real_thread_and_in_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread has both; it answers jobs, and ends trainings."""
    threads: set[int] = set()

    class Real(DeviceThread):
        def spend(self, seconds: float, who: str) -> None:
            threads.add(threading.get_ident())
            time.sleep(seconds / 20)

    with ThreadPoolExecutor(1) as executor:
        device = Real(Engine(), executor)  # type: ignore[arg-type]
        async with World(time.monotonic, device=device) as world:  # type: ignore[arg-type]
            jobs = [world.training(name, batches=5)[0] for name in ("one", "two")]
            jobs[1].training.fails_at = 20  # type: ignore[attr-defined]
            for job in jobs:
                await turn(world).add(job)
            for _ in range(20):
                world.come("a", target_ms=500)
                await asyncio.sleep(0.005)
            await asyncio.gather(*(job.news.wait() for job in jobs))
            assert jobs[0].ended
            assert str(jobs[1].error) == "it diverged"
            await until(lambda: len(world.outbox.latencies.get(A, ())) == 20)
            assert world.books.stats.units.total() == 30 + 20
            assert sum(job.seconds for job in jobs) == pytest.approx(world.trained_s)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


# ---- what may have killed a worker ----


def test_one_that_a_worker_died_of_runs_only_while_nothing_is_in_hand() -> None:
    async def test(world: World) -> None:
        alone, run = world.training("alone")
        alone.alone = True
        other, _ = world.training("other")
        await turn(world).add(alone)
        await turn(world).add(other)

        held: list[int] = []
        seen, world_run = len(held), run._run

        def checked(kind: str, seconds: float) -> None:
            held.append(len(world.table))
            world_run(kind, seconds)

        run._run = checked  # type: ignore[method-assign]
        await world.arrivals("a", 0.3 * FULL_RATE, 5, 500.0)
        assert len(held) > seen
        assert set(held) == {0}
        assert world.device.by["other"] > world.device.by["alone"], "it does not hold the others up"

    in_world(test)


def test_the_broker_knows_whose_unit_runs_and_that_none_does_when_a_pass_begins() -> None:
    async def test(world: World) -> None:
        job, _ = world.training()
        await turn(world).add(job)
        await asyncio.sleep(0.5)
        assert world.consumer.marks == [([], "t")], "once, however many loans"
        world.come("a")
        await asyncio.sleep(0.1)
        assert world.consumer.marks[1] == (["job1"], "")
        await asyncio.sleep(0.5)
        assert world.consumer.marks[2:] == [(["job1"], "t")]
        await turn(world).remove(job)
        await asyncio.sleep(0.5)
        assert world.consumer.marks[3:] == [([], "")], "an idle worker blames nobody"

    in_world(test)


def test_what_is_prepared_beside_a_unit_is_not_to_blame() -> None:
    async def test(world: World) -> None:
        await turn(world).add(world.training()[0])
        await asyncio.sleep(0.51)
        world.come("b", OFFLINE)
        await world.blame.prepare([next(iter(world.table))])
        assert world.consumer.marks[-1] == (["job1"], "t")

    in_world(test)


def test_where_the_slack_is_gone_once_the_broker_knows_no_unit_runs_and_none_is_blamed() -> None:
    async def test(world: World) -> None:
        world.consumer.delay = 0.04
        world.come("a", target_ms=100)
        await asyncio.sleep(0.5)
        job, run = world.training()
        await turn(world).add(job)
        await asyncio.sleep(0.01)
        assert run.ran == []
        world.come("b")  # while the broker is told
        await asyncio.sleep(0.2)
        marks = world.consumer.marks
        assert (["job2"], "") in marks, "its pass is blamed on itself"
        assert run.ran, "later"

    in_world(test)


@pytest.mark.parametrize("away", ["says so", "says nothing"])
def test_while_the_broker_is_away_no_unit_runs_and_texts_go_on(away: str) -> None:
    async def test(world: World) -> None:
        world.come("a")
        await asyncio.sleep(0.5)
        world.consumer.error = BrokerUnavailable("it is away")
        world.consumer.delay = 0.0 if away == "says so" else 0.7
        await turn(world).add(world.training()[0])
        await asyncio.sleep(0.1)
        assert world.trained_s == 0
        begun = world.clock()
        await asyncio.wait_for(world.blame.mark([]), 0.01)  # as of texts that go on: it is known what they are
        assert world.clock() == begun
        await asyncio.sleep(3)
        assert world.trained_s == 0
        world.consumer.error, world.consumer.delay = None, 0.0
        await asyncio.sleep(5)
        assert world.trained_s > 2

    in_world(test)


def test_a_lost_lease_ends_the_task() -> None:
    async def main(clock: Clock) -> None:
        world = World(clock)
        task = asyncio.create_task(world.loop.run())
        world.consumer.lost = True
        await turn(world).add(world.training()[0])
        with pytest.raises(LeaseLost):
            await task
        assert world.trained_s == 0

    virtual_time.run(main)


def test_a_life_that_ends_takes_the_device_back() -> None:
    async def main(clock: Clock) -> None:
        world = World(clock)
        task = asyncio.create_task(world.loop.run())
        job, run = world.training()
        await turn(world).add(job)
        await asyncio.sleep(1.01)
        task.cancel()
        ran = len(run.ran)
        await asyncio.sleep(1)
        assert len(run.ran) <= ran + 1

    virtual_time.run(main)


# ---- costs, and who is to blame for lateness ----


def test_units_teach_the_passes_cost_model_nothing() -> None:
    async def test(world: World) -> None:
        before = world.cost.coefficients
        await turn(world).add(world.training()[0])
        await asyncio.sleep(5)
        assert world.cost.coefficients == before
        assert world.books.stats.error < 0.05

    in_world(test)


def check_blame(**more: Any) -> None:
    async def test(world: World) -> None:
        books, stats = world.books, world.books.stats
        world.come("a", target_ms=100)
        await asyncio.sleep(1)
        books.answered("a", 900.0)
        assert stats.touched == 0, "no unit ran"
        job, _ = world.training(batches=1)
        await turn(world).add(job)
        await job.news.wait()  # 95 ms of units
        lent = 1000 * world.trained_s
        books.answered("a", 99.0)
        assert (stats.touched, stats.late) == (1, 0)
        books.answered("a", 101.0)
        assert (stats.touched, stats.late) == (2, 1)
        books.answered("a", 100.0 + lent + 5)
        assert (stats.touched, stats.late) == (3, 1), "it would have been late anyway"
        books.answered("nobody", 101.0)
        assert stats.touched == 3, "no target"

    in_world(test, **more)


def test_only_what_a_unit_has_made_late_is_blamed_on_training() -> None:
    check_blame()


class BlamesEverybody(TrainingBooks):
    def _judge(self, target_ms: float, took_ms: float, *, token: bool = False) -> None:
        self.stats.touched += 1
        self.stats.late += took_ms > target_ms


class BlamesAllThatWaited(TrainingBooks):
    def _judge(self, target_ms: float, took_ms: float, *, token: bool = False) -> None:
        super()._judge(min(target_ms, took_ms - 0.001), took_ms, token=token)


@pytest.mark.parametrize("books", [BlamesEverybody, BlamesAllThatWaited])
def test_who_blames_others_is_caught(books: type[TrainingBooks]) -> None:
    with pytest.raises(AssertionError):
        check_blame(books=books)


def test_where_units_make_many_late_less_is_spent() -> None:
    async def test(world: World) -> None:
        world.come("a", target_ms=100)
        await asyncio.sleep(1)
        job, _ = world.training(batches=1)
        await turn(world).add(job)
        await job.news.wait()
        for _ in range(25):
            world.books.answered("a", 101.0)
        assert world.slack.spend.now(world.clock()) == pytest.approx(0.56)

    in_world(test)


def test_a_worker_without_tuning_jobs_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        monkeypatch.setattr(world.demand, "read", lambda now: pytest.fail("it looked at the jobs in hand"))
        await world.arrivals("a", FULL_RATE / 2, 2, 500.0)
        assert world.consumer.marks
        assert all(tuning == "" for _, tuning in world.consumer.marks)

    in_world(test)


def test_who_is_opened_is_to_blame_beside_passes_and_units_of_others() -> None:
    async def test(world: World) -> None:
        marks = world.consumer.marks
        await world.blame.open("new")
        assert marks == [([], "new")]
        assert await world.blame.tune("t")
        world.blame.tuned()
        world.blame.clear_tuning()
        await until(lambda: marks[-1] == ([], "new"))
        assert marks == [([], "new"), ([], "t"), ([], "new")]
        world.blame.opened()
        world.blame.clear_tuning()
        await until(lambda: marks[-1] == ([], ""))

    in_world(test)
