"""Memory between passes: who gets it, who gives it up, and that everybody comes to an end."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, OFFLINE, Flow
from fmplex_worker.scheduling.kv_admission import KvAdmission


@dataclass
class Row:
    vfm: str
    holds: int  # bytes now
    end: int  # … when it ends
    cls: str = INTERACTIVE
    seated: bool = False

    @property
    def flow(self) -> Flow:
        return Flow(self.vfm, self.cls)


class Worker:
    """Rows that grow by a byte a pass, as they are let; what the seats say is done at once."""

    def __init__(self, total: int, weights: dict[str, float]) -> None:
        self.total, self.weights = total, weights
        self.seats = KvAdmission(total, weights)
        self.rows: dict[str, Row] = {}
        self.evictions = 0

    def come(self, key: str, row: Row) -> None:
        self.rows[key] = row
        self.seats.ask(key, row.flow, row.holds)
        self.settle()

    def settle(self) -> None:
        while True:
            turn = self.seats.turn()
            for key in turn.granted:
                self.rows[key].seated = True
            for key in turn.leaving:
                self.evictions += 1
                self.rows[key].seated = False
                self.seats.leave(key)
                self.seats.ask(key, self.rows[key].flow, self.rows[key].holds)
            assert self.seats.used <= self.total
            if not turn.leaving:
                return

    def step(self) -> list[str]:
        """A pass of all that are seated; those that have ended."""
        ended = []
        for key in [key for key, row in self.rows.items() if row.seated]:
            row = self.rows[key]
            if not row.seated:  # it left for another one in this very pass
                continue
            if row.holds >= row.end:
                ended.append(key)
                del self.rows[key]
                self.seats.leave(key)
            else:
                row.holds += 1
                row.seated = False
                self.seats.ask(key, row.flow, row.holds)
            self.settle()
        return ended


_WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 2.0]), max_size=4)
_ROWS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(CLASSES), st.integers(1, 12), st.integers(0, 12)),
    min_size=1,
    max_size=25,
)


@given(weights=_WEIGHTS, rows=_ROWS, gap=st.integers(0, 3))
@settings(deadline=None)
def test_everybody_ends_and_everything_is_given_back(
    weights: dict[str, float], rows: list[tuple[str, str, int, int]], gap: int
) -> None:
    worker = Worker(24, weights)  # one row at its largest fits
    for i, (vfm, cls, begin, more) in enumerate(rows):
        worker.come(str(i), Row(vfm, begin, begin + more, cls))
        for _ in range(gap):
            worker.step()
    for _ in range(25 * len(rows) + 100):
        worker.step()
    assert not worker.rows
    assert worker.seats.used == 0
    assert worker.seats.held == {}
    assert worker.seats.waiting == []


def _full_of_hogs() -> Worker:
    worker = Worker(100, {})
    for i in range(10):
        worker.come(f"hog{i}", Row("hog", 10, 40))
    return worker


def test_who_has_little_does_not_wait_for_who_has_much() -> None:
    worker = _full_of_hogs()
    worker.come("chat", Row("chat", 2, 5))
    assert worker.rows["chat"].seated
    assert not worker.rows["hog9"].seated, "the newest row of who has most leaves"
    assert all(worker.rows[f"hog{i}"].seated for i in range(9))


def test_nobody_leaves_for_more_than_a_fair_share() -> None:
    worker = _full_of_hogs()
    worker.come("big", Row("big", 60, 60))
    assert not worker.rows["big"].seated
    assert worker.evictions == 0


def test_interactive_rows_take_the_place_of_offline_ones_whosever() -> None:
    worker = Worker(100, {})
    for i in range(10):
        worker.come(f"batch{i}", Row("a", 10, 40, OFFLINE))
    worker.come("own", Row("a", 60, 60))
    worker.come("other", Row("b", 30, 30))
    assert worker.rows["own"].seated
    assert worker.rows["other"].seated
    assert [worker.rows[f"batch{i}"].seated for i in range(10)] == [True] + 9 * [False], "the oldest goes on"
    worker.come("more", Row("c", 20, 20, OFFLINE))
    assert not worker.rows["more"].seated, "never the other way round"


def test_who_waits_for_much_keeps_nobody_waiting_who_has_less_than_its_vfm_already() -> None:
    worker = Worker(100, {})
    for vfm in "abc":
        worker.come(vfm, Row(vfm, 32, 32))
        worker.rows[vfm].end = 10**6
    worker.come("large", Row("a", 30, 30))
    for i in range(300):
        worker.come(f"chat{i}", Row("chat", 4, 4))
        assert worker.rows[f"chat{i}"].seated, i
        del worker.rows[f"chat{i}"]
        worker.seats.leave(f"chat{i}")
        worker.settle()
    assert not worker.rows["large"].seated


def test_weights_count() -> None:
    worker = Worker(100, {"hog": 4.0})
    for i in range(8):
        worker.come(f"hog{i}", Row("hog", 10, 40))
    worker.come("chat", Row("chat", 20, 20))
    assert worker.rows["chat"].seated, "what is free is for everybody"
    worker.come("chat2", Row("chat", 10, 10))
    assert not worker.rows["chat2"].seated, "30 of weight 1 would be more than 80 of weight 4"


def test_large_ones_are_not_passed_for_ever() -> None:
    worker = Worker(100, {})
    worker.come("hog", Row("hog", 60, 60))
    worker.rows["hog"].end = 10**6  # it holds on for ever, and never grows
    worker.come("large", Row("large", 50, 50))
    rng = random.Random(1)
    for i in range(300):
        worker.come(f"small{i}", Row(rng.choice("xyz"), 5, 5))
        for key in [k for k, row in worker.rows.items() if k.startswith("small") and row.seated][:-2]:
            del worker.rows[key]
            worker.seats.leave(key)
            worker.settle()
        if i == 200:
            del worker.rows["hog"]
            worker.seats.leave("hog")
            worker.settle()
    assert worker.rows["large"].seated


def test_a_row_that_grows_goes_before_new_ones() -> None:
    worker = Worker(20, {})
    worker.come("old", Row("a", 10, 20))
    worker.come("other", Row("b", 10, 10))
    worker.come("new", Row("a", 2, 2))
    assert not worker.rows["new"].seated
    worker.rows["old"].holds = 11
    worker.seats.ask("old", Flow("a", INTERACTIVE), 11)
    worker.seats.leave("other")
    turn = worker.seats.turn()
    assert turn.granted == ["old", "new"]


@pytest.mark.parametrize("asked_twice", [False, True])
def test_leaving_rows_are_counted_once(asked_twice: bool) -> None:
    """While a row that must leave is still in a pass, nobody else is told to leave for the same bytes."""
    seats = KvAdmission(30, {})
    for i in range(3):
        seats.ask(f"hog{i}", Flow("hog", INTERACTIVE), 10)
    assert seats.turn().granted == ["hog0", "hog1", "hog2"]
    seats.ask("chat", Flow("chat", INTERACTIVE), 5)
    assert seats.turn().leaving == ["hog2"]
    if asked_twice:
        seats.ask("more", Flow("chat", INTERACTIVE), 5)
    assert seats.turn().leaving == []
    seats.leave("hog2")
    assert set(seats.turn().granted) == ({"chat", "more"} if asked_twice else {"chat"})
