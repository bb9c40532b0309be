"""Who has waited for a loan, and who gets what interactive work leaves."""

from __future__ import annotations

import pytest

from fmplex_worker.scheduling.lending import Leftover, LentTime


def test_only_what_was_lent_within_a_span_counts() -> None:
    lent = LentTime()
    for begun, ended in ((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)):
        lent.add(begun, ended)
        lent.caught_up(ended)
    assert lent.within(0.0, 10.0) == pytest.approx(3.0)
    assert lent.within(1.5, 3.5) == pytest.approx(1.0)
    assert lent.within(2.0, 3.0) == 0.0
    assert lent.within(6.0, 7.0) == 0.0
    assert lent.within(5.2, 5.3) == pytest.approx(0.1)


def test_who_comes_behind_those_who_waited_has_waited_too() -> None:
    lent = LentTime()
    lent.add(1.0, 1.2)
    lent.add(1.5, 1.6)
    assert lent.within(1.4, 2.0) == pytest.approx(0.3), "0.2 that those before are behind, and 0.1"
    assert lent.within(1.7, 2.0) == pytest.approx(0.3)
    lent.caught_up(2.5)
    assert lent.within(1.7, 3.0) == pytest.approx(0.3), "it came before that"
    assert lent.within(2.6, 3.0) == 0.0
    lent.add(3.0, 3.1)
    assert lent.within(3.05, 4.0) == pytest.approx(0.05)
    assert lent.within(3.2, 4.0) == pytest.approx(0.1)


def share(leftover: Leftover, units_s: float = 0.02, pass_s: float = 0.1, rounds: int = 3000) -> float:
    """The part that training has where both always wait."""
    trained = offline = 0.0
    for _ in range(rounds):
        if leftover.is_turn(offline_waits=True):
            leftover.note_units(units_s, offline_waits=True, owed=False)
            trained += units_s
        else:
            leftover.note_offline(pass_s)
            offline += pass_s
    return trained / (trained + offline)


@pytest.mark.parametrize(("wanted", "has"), [(0.5, 0.5), (0.8, 0.8), (0.0, 0.02), (1.0, 0.95)])
def test_what_is_left_is_shared_and_both_trickles_hold(wanted: float, has: float) -> None:
    assert share(Leftover(wanted, 0.02, 0.05)) == pytest.approx(has, abs=0.01)


def test_time_that_offline_work_did_not_want_is_not_saved() -> None:
    leftover = Leftover(0.5, 0.02, 0.05)
    for _ in range(100):
        leftover.note_units(1.0, offline_waits=False, owed=False)
    assert leftover.is_turn(offline_waits=True)
    assert share(leftover, rounds=300) == pytest.approx(0.5, abs=0.02)


def test_what_training_could_not_use_is_made_up_for_but_not_for_ever() -> None:
    leftover = Leftover(0.5, 0.02, 0.05)
    for _ in range(1000):
        leftover.note_offline(1.0)
    units = 0
    while leftover.is_turn(offline_waits=True):
        leftover.note_units(0.1, offline_waits=True, owed=False)
        units += 1
    assert units == pytest.approx(21, abs=1)


def test_the_trickle_is_paid_back_and_slack_that_was_used_counts() -> None:
    leftover = Leftover(0.5, 0.1, 0.05)
    leftover.note_interactive(0.9, offline_waits=False)
    assert leftover.owed
    leftover.note_units(0.3, offline_waits=False, owed=True)
    leftover.note_interactive(1.7, offline_waits=False)
    assert not leftover.owed
    leftover.note_interactive(0.2, offline_waits=False)
    assert leftover.owed
    leftover.note_units(5.0, offline_waits=False, owed=False)
    assert not leftover.owed
    leftover.note_interactive(0.1, offline_waits=False)
    assert leftover.owed, "what it had by right is no debt"


@pytest.mark.parametrize("wanted", [0.0, 0.5, 1.0])
def test_where_interactive_work_leaves_next_to_nothing_both_trickles_hold(wanted: float) -> None:
    """Also what one of them has from its trickle does not keep the other from its own."""
    leftover, trained, offline = Leftover(wanted, 0.02, 0.05), 0.0, 0.0
    for n in range(1, 20_001):
        leftover.note_interactive(0.1, offline_waits=True)
        if n % 20 == 0:  # as the scheduler's own trickle has it
            leftover.note_offline(0.1)
            offline += 0.1
        if leftover.owed and leftover.is_turn(offline_waits=True):
            leftover.note_units(0.02, offline_waits=True, owed=True)
            trained += 0.02
    total = 2000 + trained + offline
    assert trained / total == pytest.approx(0.02, abs=0.002)
    assert offline / total == pytest.approx(0.05, abs=0.005)


def test_a_share_of_all_that_is_left_leaves_offline_jobs_their_part_of_all_time() -> None:
    leftover, trained, offline = Leftover(1.0, 0.02, 0.05), 0.0, 0.0
    for _ in range(20_000):  # half of the time is interactive work's
        leftover.note_interactive(0.05, offline_waits=True)
        if leftover.is_turn(offline_waits=True):
            leftover.note_units(0.05, offline_waits=True, owed=False)
            trained += 0.05
        else:
            leftover.note_offline(0.05)
            offline += 0.05
    assert offline / 2000 == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("units_s", [0.02, 3.0])
@pytest.mark.parametrize("pass_s", [0.1, 4.0])
def test_however_long_their_turns_are_they_share(units_s: float, pass_s: float) -> None:
    for wanted in (0.2, 0.5):
        assert share(Leftover(wanted, 0.02, 0.05), units_s, pass_s) == pytest.approx(wanted, abs=0.02)
