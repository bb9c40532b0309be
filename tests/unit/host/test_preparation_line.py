"""Whose job is prepared by itself next: least time spent first, one job of a vFM at a time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.wire.messages import INTERACTIVE, Flow, Request
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.preparation_line import PreparationLine, Turn
from tests.unit.host.tables import claimed


def turn(vfm: str, n: int = 0) -> Turn:
    return Turn(ActiveJob(replace(claimed(n), flow=Flow(vfm, INTERACTIVE)), 0.0), Request("x", {}))


def taken(line: PreparationLine) -> list[str]:
    out = []
    while (got := line.next()) is not None:
        out.append(got.job.flow.vfm)
    return out


def test_a_vfm_has_one_job_at_it_at_a_time() -> None:
    line = PreparationLine(4)
    for n in range(3):
        line.add(turn("a", n))
    line.add(turn("b"))
    assert taken(line) == ["a", "b"]
    assert line.flows == {Flow("a", INTERACTIVE)}
    line.ended("a", 1.0)
    assert taken(line) == ["a"]


def test_so_many_vfms_at_a_time_and_no_more() -> None:
    line = PreparationLine(2)
    for vfm in "abc":
        line.add(turn(vfm))
    assert taken(line) == ["a", "b"]
    line.ended("b", 0.1)
    assert taken(line) == ["c"]


def test_who_comes_has_spent_as_much_as_who_is_next() -> None:
    line = PreparationLine(1)
    for n in range(9):
        line.add(turn("old", n))
    assert taken(line) == ["old"]
    line.ended("old", 60.0)
    line.add(turn("new"))
    line.add(turn("new", 1))
    order = []
    for _ in range(4):
        order += taken(line)
        line.ended(order[-1], 1.0)
    assert sorted(order[:2]) == ["new", "old"], "neither waits for sixty seconds of the other"


def test_jobs_that_have_ended_are_passed_over() -> None:
    line = PreparationLine(1)
    gone = turn("a", 0)
    line.add(gone)
    line.add(turn("b"))
    gone.job.state = JobState.ANSWERED
    assert line.flows == {Flow("b", INTERACTIVE)}
    assert taken(line) == ["b"]
    line.ended("b", 0.0)
    line.add(turn("a", 1))
    assert taken(line) == ["a"], "and its vFM is no worse for it"


@given(
    costs=st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 3.0), min_size=2),
    most=st.integers(1, 3),
)
def test_time_is_shared_evenly_whatever_a_job_takes(costs: dict[str, float], most: int) -> None:
    """Those that always have a job waiting differ by what two jobs take at most, however long the line goes on."""
    line, clock = PreparationLine(most), 0.0
    spent = dict.fromkeys(costs, 0.0)
    ends: list[tuple[float, str]] = []
    begun: set[str] = set()
    for vfm in costs:
        line.add(turn(vfm))
        line.add(turn(vfm))
    for _ in range(200):
        while (got := line.next()) is not None:
            begun.add(vfm := got.job.flow.vfm)
            ends.append((clock + costs[vfm], vfm))
            line.add(turn(vfm))
        clock, vfm = min(ends)
        ends.remove((clock, vfm))
        line.ended(vfm, costs[vfm])
        spent[vfm] += costs[vfm]
    busy = sum(spent.values())
    assert busy > 0
    if most == 1:
        assert max(spent.values()) - min(spent.values()) <= 2 * max(costs.values())
    assert begun == costs.keys(), "everybody has had turns"
