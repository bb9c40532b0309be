"""The cost of a plan to the worker's event loop, by the number of flows that have work.

Flows of weights 1 to 8, with two items each and more where there are few flows; one item of 16 to 48 units is added again for
each that was picked; passes of 32 items or so. `samples.plan_us_N`: one `plan()` with N flows that have work, µs;
`plan_us_10_busy`: with 10 that have and 10,000 that had and are idle. `ratios.plan_10000_over_10`, and `ratios.over_allowance_N`:
over 50 µs + 5 µs an item picked.

    python -m benchmarks.scheduler [--json] [--rounds N] [--quick]       (half a minute)
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from itertools import count

from benchmarks.harness import Benchmark, Ratios, Report, interleave, main, without_pauses
from fmplex_worker.scheduling import INTERACTIVE, CostModel, DeficitRoundRobin, Flow, Item, Room

_BUDGET = 1024
_ROOM = Room(1 << 30, 4096)
_FLOWS = (10, 100, 1000, 10_000)


class Case:
    """One scheduler, kept backlogged."""

    def __init__(self, flows: int, idle: int = 0) -> None:
        self._keys = count()
        self._rng = random.Random(7)
        self._scheduler = DeficitRoundRobin(CostModel(_BUDGET), _BUDGET)
        for n in range(idle):
            self._add(f"idle{n}")
        while len(self._scheduler):
            self._pass()
        for n in range(flows):
            self._scheduler.set_weight(f"vfm{n}", 1.0 + n % 8)
            for _ in range(max(2, 200 // flows)):
                self._add(f"vfm{n}")
        self._picked: list[int] = []

    def _add(self, vfm: str) -> None:
        units = self._rng.randrange(16, 48)
        self._scheduler.add(Item(str(next(self._keys)), Flow(vfm, INTERACTIVE), "encode", units))

    def _pass(self) -> tuple[float, list[str]]:
        begun = time.perf_counter()
        plan = self._scheduler.plan(0.0, _ROOM)
        seconds = time.perf_counter() - begun
        assert plan is not None
        self._scheduler.charge(plan, 0.01 + 1e-4 * plan.units)
        return seconds, [item.flow.vfm for item in plan.items]

    @property
    def items_a_pass(self) -> float:
        """Mean number of items in a pass."""
        return statistics.mean(self._picked)

    def measure(self, passes: int) -> float:
        """Return mean µs a plan, with as much work before every one."""
        taken = 0.0
        for _ in range(passes):
            seconds, vfms = self._pass()
            taken += seconds
            for vfm in vfms:
                self._add(vfm)
            self._picked.append(len(vfms))
        return 1e6 * taken / passes


def run(report: Report) -> None:
    """Keep all schedulers backlogged, and let them plan in turn."""
    passes = 50 if report.options.quick else 500
    cases = {f"plan_us_{n}": Case(n) for n in _FLOWS} | {"plan_us_10_busy": Case(10, idle=10_000)}
    report.config |= {"budget_units": _BUDGET, "passes": passes, "rounds": report.options.rounds}
    without_pauses()

    def turn(name: str) -> Callable[[], dict[str, float]]:
        return lambda: {name: cases[name].measure(passes)}

    interleave(report, {name: turn(name) for name in cases}, report.options.rounds)
    report.config["items_a_pass"] = {name: case.items_a_pass for name, case in cases.items()}


def ratios(report: Report) -> Ratios:
    """Compare many flows to few, idle ones to none, and each to its allowance."""
    out = {
        "plan_10000_over_10": report.ratio("plan_us_10000", "plan_us_10"),
        "plan_idle_over_none": report.ratio("plan_us_10_busy", "plan_us_10"),
    }
    for n in _FLOWS if "items_a_pass" in report.config else ():
        allowed = 50 + 5 * report.config["items_a_pass"][f"plan_us_{n}"]
        out[f"over_allowance_{n}"] = [us / allowed for us in report.samples[f"plan_us_{n}"]]
    return out


if __name__ == "__main__":
    main(Benchmark("scheduler", run, ratios, __doc__ or "", rounds=9))
