"""The worth of sharing: 16 tasks on one backbone, against a process per task, a copy per task, and one task a pass.

Every way to serve has the same broker, client, texts, tokenizer, packing and pass budget, and all its worker processes share
one core with one thread each (the device); broker and client have the other cores. Copies have the tasks' LoRAs merged.
`ratios`: FMplex / rival. `latency_*`: mean, open loop, both at 90 % of the rival's own maximum rate (in `samples` also p50,
p99, and at 50 %). `max_rate_*`: jobs a second when all wait from the beginning. `memory_*`: unique memory (USS).

    python -m benchmarks.sharing [--json] [--rounds N] [--quick] [--backbone NAME] [--seconds S]       (about nine minutes)
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.harness import Benchmark, Ratios, Report, interleave_async, main
from benchmarks.models import SIZES, Size
from benchmarks.openloop import latencies, poisson, saturated, summary
from benchmarks.rivals import OURS, PLACES, RIVALS, WARM_UP, WINDOW, Way, Ways, open_ways
from benchmarks.stopping import run_async

_LOADS = (50, 90)  # % of the rival's maximum rate


@dataclass(frozen=True)
class Plan:
    """The amount of what is measured."""

    size: Size
    tasks: int
    jobs: int  # of one saturated run
    seconds: float  # of one run of arrivals
    rounds: int


class Bench:
    """One rival at a time beside ours, and what was measured of them."""

    def __init__(self, report: Report, plan: Plan, ways: Ways) -> None:
        self._report = report
        self._plan = plan
        self._ways = ways

    async def run(self) -> None:
        """Open ours once, and each rival beside it in turn."""
        async with self._ways.open(OURS) as ours:
            for name in RIVALS:
                async with self._ways.open(name) as rival:
                    await self._against(ours, rival)

    async def _against(self, ours: Way, rival: Way) -> None:
        await self._ways.compare(ours, rival)
        self._report.config["largest_score_difference"] = self._ways.difference
        both = {rival.name: rival, f"ours_vs_{rival.name}": ours}
        await self._rounds({key: (way, partial(self._saturate, way, key)) for key, way in both.items()}, warm_up=1)
        rate = statistics.median(self._report.samples[f"max_rate_{rival.name}_per_s"])
        for load in _LOADS:
            serve = {
                key: (way, partial(self._serve, way, f"latency_{load}_{key}", rate * load / 100))
                for key, way in both.items()
            }
            await self._rounds(serve, warm_up=0)
        for key, way in both.items():
            self._report.add({f"memory_{key}_bytes": float(way.workers.unique_bytes())})

    async def _saturate(self, way: Way, key: str) -> dict[str, float]:
        got = await saturated(self._ways.client, way.vfms, self._ways.texts, self._plan.jobs)
        return {f"max_rate_{key}_per_s": got}

    async def _serve(self, way: Way, key: str, rate: float) -> dict[str, float]:
        seed = len(self._report.samples.get(f"{key}_mean_s", ()))  # the same round, the same arrivals
        arrivals = poisson(rate, self._plan.seconds, self._plan.tasks, self._ways.texts, seed)
        return summary(key, await latencies(self._ways.client, way.vfms, arrivals), WARM_UP)

    async def _rounds(
        self, measures: Mapping[str, tuple[Way, Callable[[], Awaitable[dict[str, float]]]]], warm_up: int
    ) -> None:
        """Let both take turns."""
        turns = {key: partial(self._ways.turn, way, measure) for key, (way, measure) in measures.items()}
        await interleave_async(self._report, turns, self._plan.rounds, warm_up)


async def _run(report: Report, plan: Plan) -> None:
    async with open_ways(plan.size, plan.tasks) as ways:
        await Bench(report, plan, ways).run()


def run(report: Report) -> None:
    """Measure one rival after the other."""
    options, more = report.options, report.options.more
    size = SIZES[more.backbone]
    plan = Plan(size, 16, size.jobs, more.seconds or size.seconds, options.rounds)
    if options.quick:
        plan = Plan(size, 2, size.jobs // 16, more.seconds or 0.4, options.rounds)
    report.config |= _config(plan, more.backbone)
    run_async(_run(report, plan))


def ratios(report: Report) -> Ratios:
    """Compare ours to each rival: latency, maximum rate, memory."""
    out = {}
    for rival in RIVALS:
        out[f"latency_vs_{rival}"] = report.ratio(f"latency_90_ours_vs_{rival}_mean_s", f"latency_90_{rival}_mean_s")
        out[f"max_rate_vs_{rival}"] = report.ratio(f"max_rate_ours_vs_{rival}_per_s", f"max_rate_{rival}_per_s")
    for key, rival in (("memory_vs_copies", "processes"), ("memory_vs_colocated", "colocated")):
        out[key] = report.ratio(f"memory_ours_vs_{rival}_bytes", f"memory_{rival}_bytes")
    return out


def _config(plan: Plan, backbone: str) -> dict[str, Any]:
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
        "torch": torch.__version__,
        "anchors": "paper: latency 80 % lower than processes, 33 % lower than colocated; 6 x the tasks in the same memory",
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", choices=list(SIZES), default="bert_width", help="shape of the backbone")
    parser.add_argument("--seconds", type=float, help="length of one run of arrivals")


if __name__ == "__main__":
    main(Benchmark("sharing", run, ratios, __doc__ or "", rounds=5, arguments=_arguments))
