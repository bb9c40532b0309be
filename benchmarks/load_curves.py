"""Latency against load: 16 tasks on one backbone, and the three rivals of `sharing`, at the same rates of arrivals.

Load is in % of the maximum rate of FMplex, measured first, so all ways get the same jobs at the same times, round by round;
what it is for a rival depends on the rival's own maximum rate. Arrivals are Poisson, or come in bursts: at three times the
rate for 0.5 s on average, then not at all for 1 s. Latency counts from when a job was due; the first fifth of the arrivals is
left out, and the last is waited for.
`ratios.latency_60_poisson_vs_processes`: mean latency, FMplex / rival, so for 60 and 95 %, both kinds and each rival.
`worst_mean_vs_best_rival`, `worst_p99_vs_best_rival`: the point where FMplex stands worst against the best rival at it.
`config.queue_grows`: where more arrives than the way's own maximum rate (`samples.max_rate_*`, jobs a second when all wait from
the beginning): its queue grows as long as jobs arrive, and a longer run would give a higher latency.

    python -m benchmarks.load_curves [--json] [--rounds N] [--quick] [--backbone NAME] [--seconds S]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import uvloop

from benchmarks.harness import Options, Report, cpu_name, interleave_async, main, ratio, without_pauses
from benchmarks.models import SIZES, Size
from benchmarks.openloop import Arrival, bursty, latencies, poisson, saturated
from benchmarks.rivals import OURS, PLACES, RIVALS, WARM_UP, WINDOW, Way, Ways, open_ways

_KINDS = {"poisson": poisson, "bursty": bursty}
_COMPARED = (60, 95)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    size: Size
    tasks: int
    loads: tuple[int, ...]  # % of the maximum rate of FMplex
    jobs: int  # of one saturated run
    saturated_rounds: int
    seconds: float  # of one run of arrivals
    rounds: int


class Bench:
    """All ways side by side, one of them running, and what was measured."""

    def __init__(self, plan: Plan, ways: Ways) -> None:
        self._plan = plan
        self._ways = ways
        self.samples: dict[str, list[float]] = {}

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            ours, *rivals = [await stack.enter_async_context(self._ways.open(name)) for name in (OURS, *RIVALS)]
            for rival in rivals:
                await self._ways.compare(ours, rival)
            without_pauses()
            all_ways = {
                way.name: partial(self._ways.turn, way, partial(self._saturate, way)) for way in (ours, *rivals)
            }
            await interleave_async(all_ways, self._plan.saturated_rounds)
            for key in self.samples:
                del self.samples[key][0]  # warms up
            rate = _max_rate(self.samples, OURS)
            for number in range(self._plan.rounds):
                await self._round([ours, *rivals], rate, number)

    async def _round(self, ways: list[Way], rate: float, number: int) -> None:
        """Every kind and load, for every way in turn; every other round in reverse order."""
        plan, points = self._plan, list(_points(self._plan))
        for kind, load in points[:: -1 if number % 2 else 1]:
            arrivals = _KINDS[kind](rate * load / 100, plan.seconds, plan.tasks, self._ways.texts, number)
            for way in ways[:: -1 if number % 2 else 1]:
                key = f"{kind}_{load}_{way.name}"
                await self._ways.turn(way, partial(self._serve, way, key, arrivals))

    async def _saturate(self, way: Way) -> None:
        got = await saturated(self._ways.client, way.vfms, self._ways.texts, self._plan.jobs)
        self._add(f"max_rate_{way.name}_per_s", got)

    async def _serve(self, way: Way, key: str, arrivals: list[Arrival]) -> None:
        waits = (await latencies(self._ways.client, way.vfms, arrivals))[int(WARM_UP * len(arrivals)) :]
        self._add(f"{key}_mean_s", statistics.fmean(waits))
        self._add(f"{key}_p50_s", float(np.percentile(waits, 50)))
        self._add(f"{key}_p99_s", float(np.percentile(waits, 99)))

    def _add(self, key: str, value: float) -> None:
        self.samples.setdefault(key, []).append(value)


def _max_rate(samples: dict[str, list[float]], way: str) -> float:
    return statistics.median(samples[f"max_rate_{way}_per_s"])


def _points(plan: Plan) -> Iterator[tuple[str, int]]:
    return ((kind, load) for kind in _KINDS for load in plan.loads)


def _ratios(plan: Plan, samples: dict[str, list[float]]) -> dict[str, float]:
    ratios = {
        f"latency_{load}_{kind}_vs_{rival}": ratio(
            samples, f"{kind}_{load}_{OURS}_mean_s", f"{kind}_{load}_{rival}_mean_s"
        )
        for kind in _KINDS
        for load in _COMPARED
        for rival in RIVALS
    }
    return ratios | {f"worst_{what}_vs_best_rival": _worst(plan, samples, what)[0] for what in ("mean", "p99")}


def _worst(plan: Plan, samples: dict[str, list[float]], what: str) -> tuple[float, str]:
    """The largest ratio of ours to the best rival at the same point, and that point."""
    found = []
    for kind, load in _points(plan):
        at = f"{kind}_{load}"
        best = min(RIVALS, key=lambda rival: statistics.median(samples[f"{at}_{rival}_{what}_s"]))
        value = ratio(samples, f"{at}_{OURS}_{what}_s", f"{at}_{best}_{what}_s")
        found.append((value, f"{kind} at {load} % against {best}"))
    return max(found)


def _growing(plan: Plan, samples: dict[str, list[float]]) -> dict[str, list[int]]:
    """The loads under which a way's queue grows without bound."""
    most = {way: 100 * _max_rate(samples, way) / _max_rate(samples, OURS) for way in (OURS, *RIVALS)}
    return {way: [load for load in plan.loads if load > most[way]] for way in most}


async def _run(plan: Plan) -> tuple[dict[str, list[float]], float]:
    """Samples, and the largest difference between two ways' scores."""
    async with open_ways(plan.size, plan.tasks) as ways:
        bench = Bench(plan, ways)
        await bench.run()
    return bench.samples, ways.difference


def run(options: Options) -> Report:
    more = options.more
    size = SIZES[more.backbone]
    plan = Plan(size, 16, (20, 40, 60, 80, 95), size.jobs, 2, more.seconds or 2.4, options.rounds or 5)
    if options.quick:
        plan = Plan(size, 4, _COMPARED, size.jobs // 8, 1, more.seconds or 1.5, options.rounds or 2)
    samples, difference = uvloop.run(_run(plan))
    return Report(
        "load_curves", _ratios(plan, samples), samples, _config(plan, samples, more.backbone, difference), cpu_name()
    )


def _config(plan: Plan, samples: dict[str, list[float]], backbone: str, difference: float) -> dict[str, Any]:
    return {
        "backbone": f"{backbone} size: BERT, {plan.size.layers} layers of {plan.size.hidden}, random weights, fp32",
        "tasks": f"{plan.tasks}, each a LoRA r8 on all linears (merged into the copies) and a head of 4 labels",
        "pass_units": plan.size.pass_units,
        "window_passes": WINDOW,
        "loads": plan.loads,
        "ways": (OURS, *RIVALS),
        "queue_grows": _growing(plan, samples),
        "worst_mean_at": _worst(plan, samples, "mean")[1],
        "worst_p99_at": _worst(plan, samples, "p99")[1],
        "seconds_of_arrivals": plan.seconds,
        "rounds": plan.rounds,
        "cores": PLACES,
        "threads": 1,
        "largest_score_difference": difference,
        "torch": torch.__version__,
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", choices=list(SIZES), default="bert_width", help="shape of the backbone")
    parser.add_argument("--seconds", type=float, help="length of one run of arrivals")


if __name__ == "__main__":
    main(run, __doc__ or "", _arguments)
