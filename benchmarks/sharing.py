"""What sharing is worth: 16 tasks on one backbone, against a process per task, a copy per task, and one task a pass.

Every way to serve has the same broker, client, texts, tokenizer, packing and pass budget, and all its worker processes share
one core with one thread each (the device); broker and client have the other cores. Copies have the tasks' LoRAs merged.
`ratios`: FMplex / rival. `latency_*`: mean, open loop, both at 90 % of the rival's own maximum rate (in `samples` also p50,
p99, and at 50 %). `max_rate_*`: jobs a second when all wait from the beginning. `memory_*`: unique memory (USS).

    python -m benchmarks.sharing [--json] [--rounds N] [--quick] [--backbone NAME] [--seconds S]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import uvloop

from benchmarks.harness import Options, Report, cpu_name, interleave_async, main, ratio
from benchmarks.models import SIZES, Size
from benchmarks.openloop import latencies, poisson, saturated
from benchmarks.rivals import OURS, PLACES, RIVALS, WARM_UP, WINDOW, Way, Ways, open_ways

_LOADS = (50, 90)  # % of the rival's maximum rate


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    size: Size
    tasks: int
    jobs: int  # of one saturated run
    seconds: float  # of one run of arrivals
    rounds: int


class Bench:
    """One rival at a time beside ours, and what was measured of them."""

    def __init__(self, plan: Plan, ways: Ways) -> None:
        self._plan = plan
        self._ways = ways
        self.samples: dict[str, list[float]] = {}

    async def run(self) -> None:
        async with self._ways.open(OURS) as ours:
            for name in RIVALS:
                async with self._ways.open(name) as rival:
                    await self._against(ours, rival)

    async def _against(self, ours: Way, rival: Way) -> None:
        plan, ways = self._plan, self._ways
        await ways.compare(ours, rival)
        rates = [f"max_rate_{way}_per_s" for way in (rival.name, f"ours_vs_{rival.name}")]

        async def saturate(way: Way, key: str) -> None:
            self._add(key, await saturated(ways.client, way.vfms, ways.texts, plan.jobs))

        await self._rounds(rival, ours, rates, saturate)
        rate = statistics.median(self.samples[rates[0]])
        for load in _LOADS:
            keys = [f"latency_{load}_{way}" for way in (rival.name, f"ours_vs_{rival.name}")]

            async def serve(way: Way, key: str, load: int = load) -> None:
                seed = len(self.samples.get(f"{key}_mean_s", ()))  # the same round, the same arrivals
                arrivals = poisson(rate * load / 100, plan.seconds, plan.tasks, ways.texts, seed)
                waits = (await latencies(ways.client, way.vfms, arrivals))[int(WARM_UP * len(arrivals)) :]
                self._add(f"{key}_mean_s", statistics.fmean(waits))
                self._add(f"{key}_p50_s", float(np.percentile(waits, 50)))
                self._add(f"{key}_p99_s", float(np.percentile(waits, 99)))

            await self._rounds(rival, ours, keys, serve, warm_up=0)
        self.samples[f"memory_{rival.name}_bytes"] = [float(rival.workers.unique_bytes())]
        self.samples[f"memory_ours_vs_{rival.name}_bytes"] = [float(ours.workers.unique_bytes())]

    async def _rounds(
        self, rival: Way, ours: Way, keys: list[str], measure: Callable[[Way, str], Awaitable[None]], warm_up: int = 1
    ) -> None:
        """Both take turns."""
        both = {
            way.name: partial(self._ways.turn, way, partial(measure, way, key))
            for way, key in zip((rival, ours), keys, strict=True)
        }
        await interleave_async(both, self._plan.rounds, warm_up)
        for key in keys if warm_up else ():
            self.samples[key] = self.samples[key][warm_up:]

    def _add(self, key: str, value: float) -> None:
        self.samples.setdefault(key, []).append(value)


async def _run(plan: Plan) -> tuple[dict[str, list[float]], float]:
    """Samples, and the largest difference between two ways' scores."""
    async with open_ways(plan.size, plan.tasks) as ways:
        bench = Bench(plan, ways)
        await bench.run()
    return bench.samples, ways.difference


def run(options: Options) -> Report:
    more = options.more
    size = SIZES[more.backbone]
    plan = Plan(size, 16, size.jobs, more.seconds or size.seconds, options.rounds or 3)
    if options.quick:
        plan = Plan(size, 4, size.jobs // 8, more.seconds or 1.5, options.rounds or 2)
    samples, difference = uvloop.run(_run(plan))
    ratios = {}
    for rival in RIVALS:
        ratios[f"latency_vs_{rival}"] = ratio(
            samples, f"latency_90_ours_vs_{rival}_mean_s", f"latency_90_{rival}_mean_s"
        )
        ratios[f"max_rate_vs_{rival}"] = ratio(samples, f"max_rate_ours_vs_{rival}_per_s", f"max_rate_{rival}_per_s")
    for key, rival in (("memory_vs_copies", "processes"), ("memory_vs_colocated", "colocated")):
        ratios[key] = ratio(samples, f"memory_ours_vs_{rival}_bytes", f"memory_{rival}_bytes")
    return Report("sharing", ratios, samples, _config(plan, more.backbone, difference), cpu_name())


def _config(plan: Plan, backbone: str, difference: float) -> dict[str, Any]:
    return {
        "backbone": f"{backbone} size: BERT, {plan.size.layers} layers of {plan.size.hidden}, random weights, fp32",
        "tasks": f"{plan.tasks}, each a LoRA r8 on all linears (merged into the copies) and a head of 4 labels",
        "pass_units": plan.size.pass_units,
        "window_passes": WINDOW,
        "jobs_saturated": plan.jobs,
        "seconds_of_arrivals": plan.seconds,
        "rounds": plan.rounds,
        "cores": PLACES,
        "threads": 1,
        "largest_score_difference": difference,
        "torch": torch.__version__,
        "anchors": "paper: latency 80 % lower than processes, 33 % lower than colocated; 6 x the tasks in the same memory",
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", choices=list(SIZES), default="bert_width", help="shape of the backbone")
    parser.add_argument("--seconds", type=float, help="length of one run of arrivals")


if __name__ == "__main__":
    main(run, __doc__ or "", _arguments)
