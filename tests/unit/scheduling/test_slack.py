"""The slack controller keeps its promises, and each check of them catches the controllers that are broken in that way."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_worker.scheduling.slack import Demand, Due, History, Loan, Slack, Spend

from . import slack_checks as checks
from .slack_checks import SPEND, TARGET


def real() -> Slack:
    return Slack(SPEND, 0.9, 0.05)


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_its_promises(check: object) -> None:
    check(real)  # type: ignore[operator]


class WithoutBacklog(Slack):
    def loan(self, now: float, demand: Demand, *, owed: bool = False) -> Loan:
        return super().loan(now, demand._replace(backlog=0.0), owed=owed)


class WithoutReserve(Slack):
    """Forgets that who comes needs a pass."""

    def note_pass(self, seconds: float, predicted: float, now: float) -> None:
        super().note_pass(0.0, predicted - seconds, now)


class WithoutNewcomers(Slack):
    def loan(self, now: float, demand: Demand, *, owed: bool = False) -> Loan:
        return super().loan(now, demand._replace(expected=0.0 if demand.dues else demand.expected * 2), owed=owed)


class WithoutMargin(Slack):
    def note_unit(self, seconds: float, predicted: float, now: float) -> None: ...


class ByCount(History):
    """Keeps the last hundred values, however old."""

    def __init__(self) -> None:
        super().__init__()
        self.values: deque[float] = deque(maxlen=100)

    def add(self, value: float, now: float) -> None:
        self.values.append(value)

    def high(self, now: float) -> float:
        return max(self.values, default=0.0)


class NeverRecovers(Spend):
    def now(self, now: float) -> float:
        return self._part


class RecoversByRequests(Spend):
    """Grows back with each request that was in time: where few come, never."""

    def now(self, now: float) -> float:
        return self._part

    def judge(self, late: bool, now: float) -> None:
        super().judge(late, now)
        self._part = min(self.most, self._part + (not late) * 0.02)


class CutsForAnyone(Spend):
    def judge(self, late: bool, now: float) -> None:
        for _ in range(25):
            super().judge(late, now)


class OneSpend(Slack):
    def __init__(self, spend: float, spend_tokens: float, unit_s: float) -> None:
        super().__init__(spend, spend_tokens, unit_s)
        self.spend_tokens = self.spend


class IgnoresUntargeted(Slack):
    def loan(self, now: float, demand: Demand, *, owed: bool = False) -> Loan:
        return super().loan(now, demand._replace(untargeted=False), owed=owed)


class FirstOnly(Slack):
    def loan(self, now: float, demand: Demand, *, owed: bool = False) -> Loan:
        return super().loan(now, demand._replace(dues=list(demand.dues)[:1]), owed=owed)


def with_history() -> Slack:
    slack = real()
    slack._passes, slack._overruns = ByCount(), ByCount()
    return slack


def with_spend(kind: type[Spend]) -> Slack:
    slack = real()
    slack.spend = kind(SPEND)
    return slack


MUTANTS = [
    (lambda: WithoutBacklog(SPEND, 0.9, 0.05), checks.check_the_backlog_goes_before),
    (lambda: WithoutReserve(SPEND, 0.9, 0.05), checks.check_who_may_come_has_room_for_a_pass),
    (lambda: WithoutReserve(SPEND, 0.9, 0.05), checks.check_golden_values),
    (lambda: WithoutNewcomers(SPEND, 0.9, 0.05), checks.check_golden_values),
    (lambda: WithoutMargin(SPEND, 0.9, 0.05), checks.check_errors_of_predictions_are_kept_off),
    (with_history, checks.check_a_burst_is_forgotten_by_time),
    (lambda: with_spend(NeverRecovers), checks.check_the_spend_is_cut_and_grows_back),
    (lambda: with_spend(RecoversByRequests), checks.check_the_spend_is_cut_and_grows_back),
    (lambda: with_spend(RecoversByRequests), checks.check_quiet_restores_the_spend),
    (lambda: with_spend(CutsForAnyone), checks.check_few_late_ones_cut_nothing),
    (lambda: OneSpend(SPEND, 0.9, 0.05), checks.check_tokens_have_a_spend_of_their_own),
    (lambda: IgnoresUntargeted(SPEND, 0.9, 0.05), checks.check_what_waits_without_target_waits_for_nobody),
    (lambda: FirstOnly(SPEND, 0.9, 0.05), checks.check_offers_nothing_late),
]


@pytest.mark.parametrize(("make", "check"), MUTANTS, ids=lambda one: getattr(one, "__name__", ""))
def test_a_broken_one_is_caught(make: checks.Make, check: object) -> None:
    with pytest.raises(AssertionError):
        check(make)  # type: ignore[operator]


times = st.floats(0, 100, allow_nan=False)
seconds = st.floats(0, 1, allow_nan=False)


@given(
    st.lists(st.tuples(times, seconds, seconds), max_size=40), st.lists(st.tuples(st.floats(-1, 2), seconds)), seconds
)
def test_whoever_is_in_hand_keeps_the_part_of_its_target_that_is_not_spent(
    passes: list[tuple[float, float, float]], dues: list[tuple[float, float]], backlog: float
) -> None:
    """Whatever has been: if the loan is used up, and the passes before it take what they should, it is in time."""
    slack, now = real(), 0.0
    for at, took, predicted in sorted(passes):
        now = at
        slack.note_pass(took, predicted, at)
    demand = Demand([Due(now + in_s, target or 0.1) for in_s, target in dues], backlog, TARGET)
    lent = slack.loan(now, demand)
    assert 0 <= lent.seconds <= SPEND * TARGET
    for due in demand.dues:
        assert lent.seconds == 0 or now + lent.seconds + backlog <= due.at - (1 - SPEND) * due.target + 1e-9


@given(st.lists(st.tuples(times, seconds), min_size=1, max_size=30))
def test_the_high_value_is_that_of_the_last_ten_seconds(values: list[tuple[float, float]]) -> None:
    history = History()
    for at, value in sorted(values):
        history.add(value, at)
    end = max(at for at, _ in values)
    lately = sorted(value for at, value in values if end - at <= 10)
    assert history.high(end) == lately[-(-95 * len(lately) // 100) - 1]
    assert history.high(end + 10.1) == 0.0
