"""Which jobs a worker gives up before they are late, and that it never gives up all of them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from fmplex_broker.errors import DeadlineExceeded
from fmplex_broker.wire.messages import OFFLINE
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.deadline_guard import DeadlineGuard
from tests.unit.host.tables import PASS, Table, claimed


class Bench:
    """A worker whose passes are expected to take a second for `PASS` units; it is 0 o'clock."""

    def __init__(self) -> None:
        self.table = Table(8)
        self.given_up: list[str] = []
        self.second_s = 1.0
        parts: list[Any] = [
            SimpleNamespace(answer=self._answer),
            SimpleNamespace(budget=PASS),
            SimpleNamespace(capacity=SimpleNamespace(units=10 * PASS)),
            SimpleNamespace(predict_pass=lambda units: self.second_s * units / PASS),
        ]
        clock: Any = SimpleNamespace(now_ms=lambda: 0.0)
        self.guard = DeadlineGuard(self.table, *parts, self.table.passes, clock)

    def _answer(self, job: ActiveJob, why: object) -> None:
        assert isinstance(why, DeadlineExceeded)
        self.given_up.append(job.claimed.job)
        self.table.finish(job)

    def arrive(self, n: int, units: int, deadline_ms: int, cls: str = "interactive") -> None:
        self.table.ready(self.table.take(claimed(n, units, cls, deadline_ms)), units)

    def ran(self, seconds: float) -> None:
        self.table.passes.end(seconds, time.monotonic())


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.ran(1.0)
    return bench


def test_behind_a_backlog_what_cannot_be_done_within_a_full_pass_is_given_up(bench: Bench) -> None:
    bench.arrive(1, 100, deadline_ms=900)
    bench.arrive(2, PASS, deadline_ms=60_000)
    bench.arrive(3, 100, deadline_ms=1100)
    bench.guard.answer_hopeless(0.0)
    assert bench.given_up == ["job1"]


def test_alone_it_is_judged_by_its_own_pass(bench: Bench) -> None:
    bench.arrive(1, 100, deadline_ms=150)
    bench.arrive(2, 5 * PASS, 60_000, OFFLINE)  # is in no pass with it
    bench.guard.answer_hopeless(0.0)
    assert bench.given_up == []


def test_offline_jobs_have_until_their_deadline(bench: Bench) -> None:
    bench.arrive(1, 100, 100, OFFLINE)
    bench.arrive(2, 2 * PASS, 60_000)
    bench.guard.answer_hopeless(0.0)
    assert bench.given_up == []


def test_a_prediction_far_off_does_not_refuse_everything(bench: Bench) -> None:
    bench.second_s = 1000.0
    bench.ran(0.01)  # what passes really take
    bench.arrive(1, 100, deadline_ms=200)
    bench.guard.answer_hopeless(0.0)
    assert bench.given_up == []


def test_nor_does_any_prediction_when_nothing_has_run_lately() -> None:
    bench = Bench()
    bench.second_s = 1000.0
    bench.arrive(1, 100, deadline_ms=200)
    bench.guard.answer_hopeless(0.0)
    assert bench.given_up == []
