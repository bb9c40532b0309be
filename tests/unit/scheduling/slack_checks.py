"""What the slack controller promises, as checks of how it is made; `test_slack.py` runs them over the real one and over broken
ones, each of which one check must catch."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fmplex_worker.scheduling.slack import Demand, Due, Slack

TARGET, SPEND = 0.25, 0.8
QUIET = Demand(expected=TARGET)
Make = Callable[[], Slack]


def in_ms(ms: float, ahead: float = 0.0) -> Demand:
    """One request that is due in so many ms from second 0, with so many seconds of passes before it."""
    return Demand([Due(ms / 1000, TARGET)], ahead, TARGET)


def check_golden_values(make: Make) -> None:
    slack = make()
    assert slack.loan(0.0, QUIET) == (pytest.approx(0.2), True, False)
    for _ in range(20):
        slack.note_pass(0.04, 0.04, 0.0)
    assert slack.loan(0.0, QUIET).seconds == pytest.approx(0.16)
    assert slack.loan(0.0, in_ms(120, ahead=0.03)).seconds == pytest.approx(0.03)
    assert slack.loan(0.0, in_ms(90)).seconds == pytest.approx(0.0)


def check_a_burst_is_forgotten_by_time(make: Make) -> None:
    slack = make()
    for _ in range(20):
        slack.note_pass(0.04, 0.01, 0.0)
    assert slack.loan(9.9, QUIET).seconds == pytest.approx(0.2 - 0.04 - 0.03)
    assert slack.loan(11.1, QUIET).seconds == pytest.approx(0.2)


def check_the_backlog_goes_before(make: Make) -> None:
    slack = make()
    assert slack.loan(0.0, in_ms(200, ahead=0.1)).seconds == pytest.approx(0.05)
    assert slack.loan(0.0, in_ms(200, ahead=0.2)).seconds == 0.0


def check_who_may_come_has_room_for_a_pass(make: Make) -> None:
    slack = make()
    slack.note_pass(0.15, 0.15, 0.0)
    assert slack.loan(0.0, QUIET).seconds == pytest.approx(0.05)
    assert slack.loan(0.0, in_ms(250)).seconds == pytest.approx(0.05)


def check_errors_of_predictions_are_kept_off(make: Make) -> None:
    slack = make()
    slack.note_unit(0.05, 0.02, 0.0)
    assert slack.loan(0.0, QUIET).seconds == pytest.approx(0.17)
    assert slack.loan(0.0, in_ms(250)).seconds == pytest.approx(0.17)


def check_offers_nothing_late(make: Make) -> None:
    slack = make()
    assert slack.loan(0.0, in_ms(49)).seconds == 0.0
    assert slack.loan(0.0, in_ms(-1000)).seconds == 0.0
    assert slack.loan(0.0, Demand([Due(1.0, TARGET), Due(0.04, TARGET)], expected=TARGET)).seconds == 0.0


def check_what_waits_without_target_waits_for_nobody(make: Make) -> None:
    slack = make()
    assert slack.loan(0.0, Demand()) == (0.05, False, False)
    assert slack.loan(0.0, Demand(untargeted=True)).seconds == 0.0
    assert slack.loan(0.0, Demand(untargeted=True), owed=True) == (0.05, False, True)
    assert slack.loan(0.0, Demand([Due(0.04, TARGET)], 0.0, TARGET, True), owed=True).seconds == 0.0


def check_tokens_have_a_spend_of_their_own(make: Make) -> None:
    slack = make()
    slack.note_pass(0.05, 0.05, 0.0)
    tokens = Demand([Due(0.075, 0.075, token=True)])
    assert slack.loan(0.0, tokens).seconds == pytest.approx(0.9 * 0.075 - 0.05)
    for _ in range(25):
        slack.spend_tokens.judge(True, 0.0)
    assert slack.loan(0.0, tokens).seconds == 0.0
    assert slack.loan(0.0, QUIET).seconds == pytest.approx(0.15)


def check_the_spend_is_cut_and_grows_back(make: Make) -> None:
    slack = make()
    for _ in range(25):
        assert slack.spend.now(0.0) == pytest.approx(SPEND)
        slack.spend.judge(True, 0.0)
    assert slack.spend.now(0.0) == pytest.approx(0.56)
    assert slack.spend.now(1.0) == pytest.approx(0.58)
    for second in range(1, 20):  # requests still come, and none waits for a unit
        slack.note_pass(0.001, 0.001, float(second))
    assert slack.spend.now(12.1) == pytest.approx(SPEND)


def check_quiet_restores_the_spend(make: Make) -> None:
    slack = make()
    for n in range(400):
        slack.spend.judge(True, n / 20)
    assert slack.spend.now(20.0) < 0.1
    assert slack.loan(30.1, QUIET).seconds == pytest.approx(0.2)


def check_a_burst_cuts_the_spend_once(make: Make) -> None:
    slack = make()
    for n in range(200):
        slack.spend.judge(True, n / 250)
    assert slack.spend.now(0.8) == pytest.approx(0.56, abs=0.02)
    for n in range(50):
        slack.spend.judge(True, 1.1 + n / 250)
    assert slack.spend.now(1.3) == pytest.approx(0.41, abs=0.02)


def check_few_late_ones_cut_nothing(make: Make) -> None:
    slack = make()
    for n in range(2000):
        slack.spend.judge(n % 200 == 150, 0.0)
    assert slack.spend.now(0.0) == pytest.approx(SPEND)
    for n in range(200):
        slack.spend.judge(n % 40 == 39, 0.0)
    assert slack.spend.now(0.0) < SPEND


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]
