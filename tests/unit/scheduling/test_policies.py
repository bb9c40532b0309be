"""The policies that FMplex is compared with do what their papers say; else the comparison would say nothing."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.policies import POLICIES
from benchmarks.policies.queues import Queues
from fmplex_worker.scheduling import INTERACTIVE, OFFLINE, Flow, Plan, Scheduler

from .harness import AMPLE, KnownCost, item, must

BUDGET = 60
FLOWS = {"a": 1.0, "b": 2.0, "c": 4.0}


def made(policy: str, **weights: float) -> Queues:
    scheduler = POLICIES[policy](KnownCost(BUDGET, alpha=1.0, beta=0.01), BUDGET)
    for vfm, weight in weights.items():
        scheduler.set_weight(vfm, weight)
    return scheduler


def run(scheduler: Scheduler, plan: Plan | None) -> Plan:
    done = must(plan)
    scheduler.charge(done, 1.0 + 0.01 * done.units)
    return done


def served(scheduler: Scheduler, passes: int, sizes: dict[str, int]) -> Counter[str]:
    """Jobs of each flow while all are backlogged."""
    got: Counter[str] = Counter()
    number = 0
    for _ in range(passes):
        for vfm, units in sizes.items():
            while scheduler.pending(Flow(vfm, INTERACTIVE)) < BUDGET:
                number += 1
                scheduler.add(item(number, vfm, units))
        got += Counter(it.flow.vfm for it in run(scheduler, scheduler.plan(0.0, AMPLE)).items)
    return got


jobs = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.integers(1, 90), st.sampled_from([None, "x"]), st.booleans(),
        st.sampled_from([INTERACTIVE, OFFLINE]),
    ),
    max_size=40,
)  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@given(jobs)
def test_everything_runs_once_in_passes_that_fit(
    policy: str, jobs: list[tuple[str, int, str | None, bool, str]]
) -> None:
    scheduler = made(policy, b=3.0)
    for n, (vfm, units, bucket, alone, cls) in enumerate(jobs):
        scheduler.add(item(n, vfm, units, cls, bucket, alone))
    ran: list[str] = []
    while len(scheduler):
        plan = run(scheduler, scheduler.plan(0.0, AMPLE))
        assert len({(it.bucket, it.flow.cls) for it in plan.items}) == 1
        assert len(plan.items) == 1 or (plan.units <= BUDGET and not any(it.alone for it in plan.items))
        ran += [it.key for it in plan.items]
    assert sorted(ran, key=int) == [str(n) for n in range(len(jobs))]
    assert scheduler.plan(0.0, AMPLE) is None
    for vfm in "abcd":
        own = [int(key) for key in ran if jobs[int(key)][0] == vfm and jobs[int(key)][4] == INTERACTIVE]
        assert own == sorted(own)


def test_round_robin_gives_equal_turns_whatever_the_weight_and_the_size() -> None:
    got = served(made("rr", **FLOWS), 200, {"a": 1, "b": 10, "c": 5})
    assert max(got.values()) - min(got.values()) <= 2


def test_stfq_runs_one_job_at_a_time_and_shares_time_by_weight() -> None:
    scheduler = made("stfq", **FLOWS)
    sizes = {"a": 5, "b": 50, "c": 20}
    got = served(scheduler, 700, sizes)
    assert got.total() == 700
    time = {vfm: n * (1.0 + 0.01 * sizes[vfm]) / FLOWS[vfm] for vfm, n in got.items()}
    assert max(time.values()) / min(time.values()) < 1.02


def test_bfq_charges_everybody_the_whole_pass() -> None:
    """So a flow whose one job is in every pass owes as much as the flow that fills them."""
    scheduler = made("bfq")
    for n in range(50):
        scheduler.add(item(f"a{n}", "a", 10))
    for n in range(2):
        scheduler.add(item(f"b{n}", "b", 1))
    first = must(scheduler.plan(0.0, AMPLE))
    assert {it.flow.vfm for it in first.items} == {"a", "b"}
    scheduler.charge(first, 10.0)
    tags = {vfm: scheduler.rank(Flow(vfm, INTERACTIVE)) for vfm in "ab" if scheduler.pending(Flow(vfm, INTERACTIVE))}
    assert tags["a"] == pytest.approx(10.0)
    assert tags.get("b", 10.0) == pytest.approx(10.0)


def test_vtc_shares_tokens_by_weight_not_time() -> None:
    sizes = {"a": 5, "b": 20, "c": 10}
    got = served(made("vtc", **FLOWS), 400, sizes)
    tokens = {vfm: n * sizes[vfm] / FLOWS[vfm] for vfm, n in got.items()}
    assert max(tokens.values()) / min(tokens.values()) < 1.05


def test_vtc_lifts_a_flow_that_comes_back() -> None:
    scheduler = made("vtc")
    for n in range(60):
        scheduler.add(item(f"a{n}", "a", 10))
        scheduler.add(item(f"b{n}", "b", 10))
    for _ in range(5):
        run(scheduler, scheduler.plan(0.0, AMPLE))
    for n in range(60):
        scheduler.add(item(f"c{n}", "c", 10))
    got = Counter(it.flow.vfm for _ in range(3) for it in run(scheduler, scheduler.plan(0.0, AMPLE)).items)
    assert got["c"] <= 7  # a third, and nothing for the time when it was away
