"""What a plan costs the worker's event loop, by the number of flows that have work.

Flows of weights 1 to 8, with two items each and more where there are few flows; one item of 16 to 48 units is added again for
each that was picked; passes of 32 items or so. `samples.plan_us_N`: one `plan()` with N flows that have work, µs;
`plan_us_10_busy`: with 10 that have and 10,000 that had and are idle. `ratios.plan_10000_over_10`, and `ratios.over_allowance_N`:
over 50 µs + 5 µs an item picked.
"""

from __future__ import annotations

import random
import statistics
import time
from functools import partial
from itertools import count

from benchmarks.harness import Options, Report, cpu_name, interleave, main, ratio, without_pauses
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
        self.picked: list[int] = []
        self.plan_us: list[float] = []

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

    def measure(self, passes: int) -> None:
        """Mean µs a plan, with as much work before every one."""
        taken = 0.0
        for _ in range(passes):
            seconds, vfms = self._pass()
            taken += seconds
            for vfm in vfms:
                self._add(vfm)
            self.picked.append(len(vfms))
        self.plan_us.append(1e6 * taken / passes)


def run(options: Options) -> Report:
    passes, rounds = (50, 3) if options.quick else (500, options.rounds or 9)
    cases = {f"plan_us_{n}": Case(n) for n in _FLOWS} | {"plan_us_10_busy": Case(10, idle=10_000)}
    without_pauses()
    interleave({name: partial(case.measure, passes) for name, case in cases.items()}, rounds, warm_up=1)
    samples = {name: case.plan_us[1:] for name, case in cases.items()}
    items = {name: statistics.mean(case.picked) for name, case in cases.items()}
    ratios = {"plan_10000_over_10": ratio(samples, "plan_us_10000", "plan_us_10"),
              "plan_idle_over_none": ratio(samples, "plan_us_10_busy", "plan_us_10")}  # fmt: skip
    ratios |= {
        f"over_allowance_{n}": statistics.median(samples[f"plan_us_{n}"]) / (50 + 5 * items[f"plan_us_{n}"])
        for n in _FLOWS
    }
    return Report(
        benchmark="scheduler",
        ratios=ratios,
        samples=samples,
        config={"budget_units": _BUDGET, "items_a_pass": items, "passes": passes, "rounds": rounds},
        device=cpu_name(),
    )


if __name__ == "__main__":
    main(run, __doc__ or "")
