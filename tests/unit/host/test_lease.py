"""The lease of a worker, against a consumer that answers from a script and a clock that only sleep and the script move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams.consumer import Beat, ReapResult
from fmplex_worker.host import lease as under_test
from fmplex_worker.host.lease import Lease, LeaseLost

LEASE_MS = 3000  # a beat every second, which floats can say exactly
START = 1000.0
IDLE = ReapResult("idle", "", 0, 0, False)


class Over(Exception):
    """The script has ended."""


class Stage:
    """Plays server, clock and sleep. `beats`: what each beat meets, a number of seconds that it takes, an error, or None for a
    worker that has been condemned."""

    def __init__(self, beats: Iterable[float | Exception | None], reaps: Iterable[ReapResult | Exception] = ()) -> None:
        self.worker = "w1"
        self.now = START
        self.sleeps: list[float] = []
        self.beats: list[float] = []  # when the server answered, since the start
        self.reaps: list[tuple[float, int]] = []  # when, and the steady time that was claimed, ms
        self.attempts: set[int] = set()
        self.clock: list[int] = []
        self.changes: list[int] = []
        self._script = iter(beats)
        self._reaped = iter(reaps)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def set(self, now_ms: int) -> None:
        self.clock.append(now_ms)

    async def beat(self) -> Beat:
        try:
            met = next(self._script)
        except StopIteration:
            raise Over from None
        if isinstance(met, Exception):
            raise met
        self.now += met or 0.0
        self.beats.append(self.now - START)
        return Beat(met is not None, 5000 + len(self.beats), 70 + len(self.beats))

    async def reap(self, steady_ms: int, *, max_attempts: int) -> ReapResult:
        self.reaps.append((self.now - START, steady_ms))
        self.attempts.add(max_attempts)
        got = next(self._reaped, IDLE)
        if isinstance(got, Exception):
            raise got
        return got


Play = Callable[..., Stage]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Run a lease against a script; by default until that has ended."""

    def run(
        beats: Iterable[float | Exception | None],
        reaps: Iterable[ReapResult | Exception] = (),
        ends: type[Exception] = Over,
    ) -> Stage:
        stage: Any = Stage(beats, reaps)
        monkeypatch.setattr(under_test, "time", SimpleNamespace(monotonic=stage.monotonic))
        monkeypatch.setattr(under_test, "asyncio", SimpleNamespace(sleep=stage.sleep))
        lease = Lease(stage, stage, LEASE_MS, 3, stage.changes.append)
        with pytest.raises(ends) as caught:
            asyncio.run(lease.run())
        stage.raised = caught.value
        return stage

    return run


def test_it_beats_three_times_a_lease_and_tells_what_it_hears(play: Play) -> None:
    stage = play([0.0] * 5)
    assert stage.beats == [0, 1, 2, 3, 4]
    assert stage.sleeps == [1.0] * 5
    assert stage.clock == [5001, 5002, 5003, 5004, 5005]
    assert stage.changes == [71, 72, 73, 74, 75]


def test_it_reaps_only_when_it_has_been_steady_for_one_whole_lease(play: Play) -> None:
    stage = play([0.0] * 6)
    assert stage.reaps == [(3, 3000), (4, 4000), (5, 5000)]
    assert stage.attempts == {3}


def test_it_goes_on_taking_over_until_nobody_is_left(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    gone = [ReapResult("ok", "w7", 4, 1, True), ReapResult("ok", "w8", 2, 0, False)]
    stage = play([0.0] * 4, [*gone, ReapResult("wait", "", 0, 0, False)])
    assert stage.reaps == [(3, 3000)] * 3
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == [
        "took over from worker w7: 4 jobs given back, 1 dead letters",
        "took over from worker w8: 2 jobs given back, 0 dead letters",
    ]


def test_when_it_is_condemned_its_life_is_over(play: Play) -> None:
    stage = play([0.0, 0.0, 0.0, 0.0, None, 0.0], ends=LeaseLost)
    assert stage.beats == [0, 1, 2, 3, 4]
    assert stage.raised.args == ("w1",)
    assert stage.reaps == [(3, 3000)], "nobody reaps who is dead himself"
    assert stage.changes == [71, 72, 73, 74], "and it hears no more of changes"


def test_after_a_gap_it_lives_on_and_the_count_begins_anew(play: Play) -> None:
    """The third beat takes so long that others may only look dead because the broker was away."""
    stage = play([0.0, 0.0, 2.5, 0.0, 0.0, 0.0, 0.0])
    assert stage.beats == [0, 1, 4.5, 5.5, 6.5, 7.5, 8.5]
    assert stage.reaps == [(7.5, 3000), (8.5, 4000)]


def test_a_gap_of_one_whole_lease_is_none_yet(play: Play) -> None:
    stage = play([0.0, 0.0, 2.0, 0.0])
    assert stage.beats == [0, 1, 4, 5]
    assert stage.reaps == [(4, 4000), (5, 5000)]


def test_an_unreachable_broker_is_survived(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    stage = play([0.0, BrokerUnavailable("nobody there"), 0.0, 0.0])
    assert stage.beats == [0, 2, 3]
    assert stage.reaps == [(3, 3000)], "one beat that is lost is no gap"
    assert "heartbeat: nobody there" in caplog.text


def test_a_broker_that_is_away_for_long_is_a_gap(play: Play) -> None:
    away = [BrokerUnavailable("nobody there")] * 4
    stage = play([0.0] * 5 + away + [0.0] * 4)
    assert stage.beats == [0, 1, 2, 3, 4, 9, 10, 11, 12]
    assert stage.reaps == [(3, 3000), (4, 4000), (12, 3000)]


def test_a_broker_that_goes_while_it_reaps_is_survived(play: Play) -> None:
    stage = play([0.0] * 5, [BrokerUnavailable("gone"), ReapResult("ok", "w2", 1, 0, False)])
    assert stage.reaps == [(3, 3000), (4, 4000), (4, 4000)]


def test_any_other_error_ends_it(play: Play) -> None:
    play([0.0, ZeroDivisionError()], ends=ZeroDivisionError)


# In quarters of a second, so that sums are exact.
_takes = st.one_of(st.integers(0, 20).map(lambda n: n / 4), st.just(BrokerUnavailable("away")))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(_takes, max_size=40))
def test_whoever_reaps_has_beaten_without_a_gap_for_as_long_as_it_says(
    play: Play, script: list[float | Exception]
) -> None:
    stage = play(script)
    reaps = dict(stage.reaps)
    steady_since = last = 0.0
    for beat in stage.beats:
        if (beat - last) * 1000 > LEASE_MS:
            steady_since = beat
        last = beat
        steady_ms = int((beat - steady_since) * 1000)
        assert reaps.pop(beat, None) == (steady_ms if steady_ms >= LEASE_MS else None)
    assert reaps == {}, "it reaps right after a beat, and at no other time"
