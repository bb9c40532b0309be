"""Which jobs a device gives up before they are late, and that it never gives up all of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fmplex_broker.errors import DeadlineExceeded
from fmplex_broker.wire.messages import OFFLINE
from fmplex_worker.host.jobs import ActiveJob, JobTable
from fmplex_worker.host.pass_loop import PassLoop
from tests.unit.worker.test_jobs import PASS, claimed, queue, window


class Bench:
    """A device whose passes are expected to take a second for `PASS` units; it is 0 o'clock."""

    def __init__(self) -> None:
        self.window: JobTable = window(8)
        self.given_up: list[str] = []
        self.second_s = 1.0
        scheduler = SimpleNamespace(budget=PASS)
        cost = SimpleNamespace(predict_pass=lambda units: self.second_s * units / PASS)
        parts: list[Any] = [
            SimpleNamespace(capacity=SimpleNamespace(units=10 * PASS)), scheduler, cost, self.window,
            SimpleNamespace(end=lambda held: None), SimpleNamespace(answer=self._answer), None,
            SimpleNamespace(now_ms=lambda: 0.0), None, None, None,
        ]  # fmt: skip
        self.device = PassLoop(*parts)

    def _answer(self, held: ActiveJob, why: object) -> None:
        assert isinstance(why, DeadlineExceeded)
        self.given_up.append(held.job.job)
        self.window.finish(held)

    def arrive(self, n: int, units: int, deadline_ms: int, cls: str = "interactive") -> None:
        held = self.window.add(claimed(n, units, cls, deadline_ms))
        queue(self.window, held, units)

    def ran(self, seconds: float) -> None:
        self.window.ended(seconds)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.ran(1.0)
    return bench


def test_behind_a_backlog_what_cannot_be_done_within_a_full_pass_is_given_up(bench: Bench) -> None:
    bench.arrive(1, 100, deadline_ms=900)
    bench.arrive(2, PASS, deadline_ms=60_000)
    bench.arrive(3, 100, deadline_ms=1100)
    bench.device._expire()
    assert bench.given_up == ["job1"]


def test_alone_it_is_judged_by_its_own_pass(bench: Bench) -> None:
    bench.arrive(1, 100, deadline_ms=150)
    bench.arrive(2, 5 * PASS, 60_000, OFFLINE)  # is in no pass with it
    bench.device._expire()
    assert bench.given_up == []


def test_offline_jobs_have_until_their_deadline(bench: Bench) -> None:
    bench.arrive(1, 100, 100, OFFLINE)
    bench.arrive(2, 2 * PASS, 60_000)
    bench.device._expire()
    assert bench.given_up == []


def test_a_prediction_far_off_does_not_refuse_everything(bench: Bench) -> None:
    bench.second_s = 1000.0
    bench.ran(0.01)  # what passes really take
    bench.arrive(1, 100, deadline_ms=200)
    bench.device._expire()
    assert bench.given_up == []


def test_nor_does_any_prediction_when_nothing_has_run_lately() -> None:
    bench = Bench()
    bench.second_s = 1000.0
    bench.arrive(1, 100, deadline_ms=200)
    bench.device._expire()
    assert bench.given_up == []
