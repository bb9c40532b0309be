"""Latency against load: 16 tasks on one backbone, and the three rivals of `sharing`, at the same rates of arrivals.

Load is in % of the maximum rate of FMplex, measured first, so all ways get the same jobs at the same times, round by round;
what it is for a rival depends on the rival's own maximum rate. Arrivals are Poisson, or come in bursts: at three times the
rate for 0.5 s on average, then not at all for 1 s. Latency counts from when a job was due; the first fifth of the arrivals is
left out, and the last is waited for.
`ratios.latency_60_poisson_vs_processes`: mean latency, FMplex / rival; likewise for 95 %, both kinds and each rival.
`worst_mean_vs_best_rival`, `worst_p99_vs_best_rival`: the point where FMplex stands worst against the best rival at it.
`config.queue_grows`: where more arrives than the way's own maximum rate (`samples.max_rate_*`, jobs a second when all wait from
the beginning): its queue grows as long as jobs arrive, and a longer run would give a higher latency.

    python -m benchmarks.load_curves [--json] [--rounds N] [--quick] [--backbone NAME] [--seconds S] [--loads PERCENT …]

takes about nine minutes with its three loads; `--loads 20 40 60 80 95` a quarter of an hour.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.harness import Benchmark, Ratios, Report, interleave_async, main, without_pauses
from benchmarks.models import SIZES, Size
from benchmarks.openloop import Arrival, bursty, latencies, poisson, saturated, summary
from benchmarks.rivals import OURS, PLACES, RIVALS, WARM_UP, WINDOW, Way, Ways, open_ways
from benchmarks.stopping import run_async

_KINDS = {"poisson": poisson, "bursty": bursty}
_LOADS, _COMPARED = (20, 60, 95), (60, 95)


@dataclass(frozen=True)
class Plan:
    """The amount of what is measured."""

    size: Size
    tasks: int
    loads: tuple[int, ...]  # % of the maximum rate of FMplex
    jobs: int  # of one saturated run
    saturated_rounds: int
    seconds: float  # of one run of arrivals
    rounds: int


class Bench:
    """All ways side by side, one of them running."""

    def __init__(self, report: Report, plan: Plan, ways: Ways) -> None:
        self._report = report
        self._plan = plan
        self._ways = ways

    async def run(self) -> None:
        """Measure maximum rates, and then latencies at parts of ours."""
        async with AsyncExitStack() as stack:
            ways = [await stack.enter_async_context(self._ways.open(name)) for name in (OURS, *RIVALS)]
            for rival in ways[1:]:
                await self._ways.compare(ways[0], rival)
            self._report.config["largest_score_difference"] = self._ways.difference
            without_pauses()
            await self._turns({way: partial(self._saturate, way) for way in ways}, self._plan.saturated_rounds, 1)
            rate = _max_rate(self._report, OURS)
            for number in range(self._plan.rounds):
                await self._round(ways, rate, number)

    async def _round(self, ways: list[Way], rate: float, number: int) -> None:
        """Measure every kind and load, for every way in turn; every other round in reverse order."""
        plan, points = self._plan, list(_points(self._report))
        for kind, load in points[:: -1 if number % 2 else 1]:
            arrivals = _KINDS[kind](rate * load / 100, plan.seconds, plan.tasks, self._ways.texts, number)
            order = ways[:: -1 if number % 2 else 1]
            await self._turns({way: partial(self._serve, way, f"{kind}_{load}", arrivals) for way in order}, 1, 0)

    async def _turns(
        self, measures: dict[Way, Callable[[], Awaitable[dict[str, float]]]], rounds: int, warm_up: int
    ) -> None:
        turns = {way.name: partial(self._ways.turn, way, measure) for way, measure in measures.items()}
        await interleave_async(self._report, turns, rounds, warm_up)

    async def _saturate(self, way: Way) -> dict[str, float]:
        got = await saturated(self._ways.client, way.vfms, self._ways.texts, self._plan.jobs)
        return {f"max_rate_{way.name}_per_s": got}

    async def _serve(self, way: Way, point: str, arrivals: list[Arrival]) -> dict[str, float]:
        waits = await latencies(self._ways.client, way.vfms, arrivals)
        return summary(f"{point}_{way.name}", waits, WARM_UP)


def _max_rate(report: Report, way: str) -> float:
    return statistics.median(report.samples[f"max_rate_{way}_per_s"])


def _points(report: Report) -> Iterator[tuple[str, int]]:
    return ((kind, load) for kind in _KINDS for load in report.config["loads"])


def ratios(report: Report) -> Ratios:
    """Compare our mean latencies to each rival's, and to the best rival's where we stand worst."""
    out = {
        f"latency_{load}_{kind}_vs_{rival}": report.ratio(
            f"{kind}_{load}_{OURS}_mean_s", f"{kind}_{load}_{rival}_mean_s"
        )
        for kind, load in _points(report)
        for rival in RIVALS
        if load in _COMPARED
    }
    return out | {f"worst_{what}_vs_best_rival": _worst(report, what)[0] for what in ("mean", "p99")}


def _worst(report: Report, what: str) -> tuple[list[float], str]:
    """Return the largest of our ratios to the best rival at the same point, and that point; empty if none is measured."""
    found = []
    for kind, load in _points(report):
        theirs = {rival: report.samples.get(f"{kind}_{load}_{rival}_{what}_s") for rival in RIVALS}
        medians = {rival: statistics.median(values) for rival, values in theirs.items() if values}
        if len(medians) == len(RIVALS):
            best = min(medians, key=lambda rival: medians[rival])
            values = report.ratio(f"{kind}_{load}_{OURS}_{what}_s", f"{kind}_{load}_{best}_{what}_s")
            found.append((values, f"{kind} at {load} % against {best}"))
    return max(found, key=lambda at: statistics.median(at[0]), default=([], ""))


def _growing(report: Report) -> dict[str, list[int]]:
    """Name the loads under which a way's queue grows without bound."""
    most = {way: 100 * _max_rate(report, way) / _max_rate(report, OURS) for way in (OURS, *RIVALS)}
    return {way: [load for load in report.config["loads"] if load > most[way]] for way in most}


async def _run(report: Report, plan: Plan) -> None:
    async with open_ways(plan.size, plan.tasks) as ways:
        await Bench(report, plan, ways).run()


def run(report: Report) -> None:
    """Measure all ways at all points."""
    options, more = report.options, report.options.more
    size = SIZES[more.backbone]
    plan = Plan(size, 16, tuple(more.loads or _LOADS), size.jobs, 2, more.seconds or 2.4, options.rounds)
    if options.quick:
        plan = Plan(size, 2, tuple(more.loads or _COMPARED), size.jobs // 16, 1, more.seconds or 0.5, options.rounds)
    report.config |= _config(plan, more.backbone)
    run_async(_run(report, plan))
    report.config["queue_grows"] = _growing(report)
    for what in ("mean", "p99"):
        report.config[f"worst_{what}_at"] = _worst(report, what)[1]


def _config(plan: Plan, backbone: str) -> dict[str, Any]:
    return {
        "backbone": f"{backbone} size: BERT, {plan.size.layers} layers of {plan.size.hidden}, random weights, fp32",
        "tasks": f"{plan.tasks}, each a LoRA r8 on all linears (merged into the copies) and a head of 4 labels",
        "pass_units": plan.size.pass_units,
        "window_passes": WINDOW,
        "loads": plan.loads,
        "ways": (OURS, *RIVALS),
        "seconds_of_arrivals": plan.seconds,
        "rounds": plan.rounds,
        "cores": PLACES,
        "threads": 1,
        "torch": torch.__version__,
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", choices=list(SIZES), default="bert_width", help="shape of the backbone")
    parser.add_argument("--loads", type=int, nargs="+", help="%% of FMplex's maximum rate (default: 20 60 95)")
    parser.add_argument("--seconds", type=float, help="length of one run of arrivals")


if __name__ == "__main__":
    main(Benchmark("load_curves", run, ratios, __doc__ or "", rounds=5, arguments=_arguments))
