"""What the device has to do, as whoever lends it sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fmplex_broker.specs.vfm import Targets
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.demand import DemandReader
from fmplex_worker.host.job_state import JobState
from fmplex_worker.scheduling import CostModel, DeficitRoundRobin, Demand, Due, PassBudget, TargetBook
from tests.unit.host.tables import PASS, Table, claimed


class Clock(ServerClock):
    """The server's clock is 7 s ahead of ours."""

    def at_ms(self, monotonic: float) -> float:
        return 1000 * (monotonic + 7.0)


class Bench:
    def __init__(self, **targets: float) -> None:
        cost = CostModel(PASS)
        self.table = Table(3)
        self.targets = TargetBook(PassBudget(cost, PASS))
        self.targets.record("a", Targets(**targets), 0.0)
        self.reader = DemandReader(self.table, Clock(), self.targets, cost, DeficitRoundRobin(cost, PASS))
        self.pass_s = cost.predict_pass(100)
        self.full_s = cost.predict_pass(PASS)
        self.jobs = 0

    def come(self, at_ms: int, cls: str = INTERACTIVE, units: int = 100) -> ActiveJob:
        """A job that was enqueued then, by the server's clock; its piece waits."""
        self.jobs += 1
        job = claimed(self.jobs, units, cls)
        job.entry = f"{at_ms}-{self.jobs}"
        active = self.table.take(job)
        self.table.ready(active, units)
        return active

    def read(self, now: float = 1.0) -> Demand:
        return self.reader.read(now)


def test_a_reply_is_due_by_its_latency_target_on_our_clock() -> None:
    bench = Bench(latency_ms=250)
    bench.come(8_000)
    assert bench.read() == ([Due(1.25, 0.25)], pytest.approx(bench.pass_s), 0.25, False)


def test_a_text_is_due_by_its_first_token_and_then_by_each_next_one() -> None:
    bench = Bench(ttft_ms=300, inter_token_ms=50)
    job = bench.come(8_000)
    assert bench.read().dues == [Due(1.3, 0.3)]
    job.token_ms = 8_400
    assert bench.read().dues == [Due(1.45, 0.05, token=True)]


def test_of_several_targets_the_one_that_is_due_first_counts() -> None:
    bench = Bench(latency_ms=100, ttft_ms=300, inter_token_ms=5000)
    job = bench.come(8_000)
    assert bench.read().dues == [Due(1.1, 0.1)]
    job.token_ms = 8_010
    assert bench.read().dues == [Due(1.1, 0.1)]


def test_one_that_has_no_target_for_what_it_waits_for_is_no_due() -> None:
    bench = Bench(inter_token_ms=50)
    job = bench.come(8_000)
    assert (bench.read().dues, bench.read().untargeted, bench.read().expected) == ([], True, 0.0)
    job.token_ms = 8_400
    assert (len(list(bench.read().dues)), bench.read().untargeted) == (1, False)


def test_what_runs_has_ended_or_is_offline_waits_for_nothing() -> None:
    bench = Bench(latency_ms=250)
    running, over = bench.come(8_000), bench.come(8_000)
    bench.come(8_000, OFFLINE)
    bench.table.start(next(iter(running.pieces)))
    bench.table.finish(over)
    assert (bench.read().dues, bench.read().untargeted) == ([], False)


def test_who_waits_for_something_else_and_is_late_holds_nothing_up() -> None:
    """It may be long until its version is here; while it can still be in time it counts."""
    bench = Bench(latency_ms=250)
    job = bench.table.take(replace(claimed(1), entry="8000-1"))
    bench.table.move(job, JobState.AWAITING_VERSION)
    assert bench.read(1.2).dues == [Due(1.25, 0.25)]
    assert bench.read(1.3).dues == []
    other = Bench()
    job = other.table.take(claimed(1))
    other.table.move(job, JobState.AWAITING_VERSION)
    assert not other.read().untargeted


def test_the_backlog_is_passes_of_all_that_is_here() -> None:
    bench = Bench(latency_ms=60_000)
    bench.come(8_000)
    bench.come(8_000, units=2 * PASS)
    assert bench.read().backlog == pytest.approx(2 * bench.full_s + bench.pass_s)
    waits = bench.table.take(claimed(9, units=100))  # not prepared yet
    assert bench.read().backlog == pytest.approx(2 * bench.full_s + bench.reader._cost.predict_pass(200))
    assert waits.state is JobState.CLAIMED


def test_of_a_backlog_beyond_every_target_not_each_job_is_looked_at() -> None:
    bench = Bench(latency_ms=50)
    bench.read()  # now it is known which targets there are
    for _ in range(100):
        bench.come(8_000, units=PASS)
    (due,) = bench.read().dues
    assert due.at < 0


def test_a_vfm_that_has_sent_nothing_for_a_minute_is_not_expected() -> None:
    bench = Bench(latency_ms=250)
    bench.targets.record("b", Targets(ttft_ms=90), 30.0)
    assert bench.reader.quiet(59.0) == Demand(expected=0.09)
    assert bench.reader.quiet(89.0) == Demand(expected=0.09)
    assert bench.reader.quiet(90.0) == Demand()
    bench.targets.record("b", Targets(ttft_ms=90), 91.0)
    bench.targets.record("b", Targets(), 92.0)
    assert bench.reader.quiet(92.0) == Demand()
