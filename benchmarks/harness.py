"""Common to all benchmarks: interleaved rounds, medians with their spread, one JSON object or a table.

The machine is never quiet, so variants take turns within each round and are compared round by round: a ratio is the
median over the rounds of (variant / base), and a disturbance hits both sides of it.

A benchmark fills a `Report` while it runs. One that is stopped (see `benchmarks.stopping`) prints what it has so far, with
`"complete": false`, and exits with 128 + signal.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.stopping import Stopped, finish, watched

_Variant = TypeVar("_Variant")
_QUICK_ROUNDS = 2  # the fewest that have a spread
Ratios = dict[str, list[float]]  # name → one number a round


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `rounds`: as given, else the benchmark's default, else 2 if `quick`, a small version that only shows it
    works; `more`: what this benchmark alone takes."""

    rounds: int
    quick: bool
    json: bool
    more: argparse.Namespace = field(default_factory=argparse.Namespace)


@dataclass(slots=True)
class Report:
    """Everything that a benchmark has measured so far. `samples`: name → one number a round (seconds unless config says else)."""

    options: Options
    samples: dict[str, list[float]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    device: str = field(default_factory=lambda: cpu_name())

    def add(self, measured: Mapping[str, float]) -> None:
        """Add what one variant measured in one round."""
        for name, value in measured.items():
            self.samples.setdefault(name, []).append(value)

    def ratio(self, name: str, base: str) -> list[float]:
        """Divide the samples `name` by those of `base`, round by round; empty if there are none of one yet."""
        pairs = zip(self.samples.get(name, ()), self.samples.get(base, ()), strict=False)
        return [value / other for value, other in pairs]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One script. `run` fills the report; `ratios` are the claim, computed from what is in it: per name one number a round,
    or just one. `rounds`: the default; `arguments`: adds options of its own; `passed`: False makes the exit status 1."""

    name: str
    run: Callable[[Report], None]
    ratios: Callable[[Report], Ratios]
    description: str
    rounds: int = 1
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None
    passed: Callable[[Report], bool] = lambda _: True


def turns(names: Sequence[_Variant], rounds: int, warm_up: int = 0) -> Iterator[tuple[int, _Variant]]:
    """Yield round (negative: warms up) and variant. Every other round runs in reverse order, so that nobody is always first."""
    for number in range(-warm_up, rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            yield number, name


def interleave(
    report: Report, variants: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int, warm_up: int = 1
) -> None:
    """Run every variant once a round, and add what it returns to the report unless the round warms up."""
    for number, name in turns(list(variants), rounds, warm_up):
        measured = variants[name]()
        if number >= 0:
            report.add(measured)


async def interleave_async(
    report: Report, variants: Mapping[str, Callable[[], Awaitable[Mapping[str, float]]]], rounds: int, warm_up: int = 1
) -> None:
    """Run coroutines as `interleave` runs functions."""
    for number, name in turns(list(variants), rounds, warm_up):
        measured = await variants[name]()
        if number >= 0:
            report.add(measured)


def timed(name: str, call: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """Make a variant of a function: the seconds that it takes, under a name."""

    def run() -> dict[str, float]:
        begun = time.perf_counter()
        call()
        return {name: time.perf_counter() - begun}

    return run


def without_pauses() -> None:
    """Leave what is there by now out of garbage collections: a load generator that halts for 0.2 s measures its own pause."""
    gc.collect()
    gc.freeze()


def worst(candidates: Iterable[list[float]], pick: Callable[..., list[float]] = max) -> list[float]:
    """Return the per-round ratios whose median is the largest, or with `min` the smallest; empty if nothing was measured."""
    return pick((values for values in candidates if values), key=statistics.median, default=[])


def spread(values: Sequence[float]) -> float:
    """Return half the distance between the quartiles, as a share of the median: 0.02 is ± 2 %. 0 for one value or median 0."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / abs(middle) if middle else 0.0


def main(benchmark: Benchmark) -> None:
    """Parse the command line, run, print, exit. With `--json` only the object reaches stdout."""
    options = _parse(benchmark)
    watched()
    report, stopped = Report(options), None
    stdout, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not break the object
    try:
        benchmark.run(report)
    except Stopped as e:
        stopped = e
    finally:
        sys.stdout = stdout
    finish()
    result = _result(benchmark, report, complete=stopped is None)
    print(json.dumps(result) if options.json else _as_table(result))
    sys.exit(stopped.status if stopped else int(not benchmark.passed(report)))


def _parse(benchmark: Benchmark) -> Options:
    parser = argparse.ArgumentParser(
        description=benchmark.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help=f"interleaved rounds (default: {benchmark.rounds})")
    parser.add_argument("--quick", action="store_true", help="a small version, to see that it works")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
    benchmark.arguments(parser)
    given = vars(parser.parse_args())
    rounds, quick, as_json = (given.pop(name) for name in ("rounds", "quick", "json"))
    default = min(_QUICK_ROUNDS, benchmark.rounds) if quick else benchmark.rounds
    return Options(rounds or default, quick, as_json, argparse.Namespace(**given))


def _result(benchmark: Benchmark, report: Report, complete: bool) -> dict[str, Any]:
    """Return the JSON object. `rounds`: the fewest that one of the ratios with a spread is the median of."""
    measured = benchmark.ratios(report)
    if complete and (missing := [name for name, values in measured.items() if not values]):
        raise RuntimeError(f"nothing was measured for {missing}")
    several = {name: values for name, values in measured.items() if len(values) > 1}
    return {
        "benchmark": benchmark.name,
        "complete": complete,
        "rounds": min(map(len, several.values()), default=int(any(measured.values()))),
        "ratios": {name: statistics.median(values) for name, values in measured.items() if values},
        "spreads": {name: spread(values) for name, values in several.items()},
        "samples": {name: values for name, values in report.samples.items() if values},
        "config": report.config,
        "device": report.device,
    }


def _as_table(result: Mapping[str, Any]) -> str:
    lines = [f"{result['benchmark']} on {result['device']}{'' if result['complete'] else ': stopped, not complete'}"]
    lines += [f"  {key} = {value}" for key, value in result["config"].items()]
    lines += ["", f"{'measured':<40}{'median':>12}{'spread':>10}"]
    for name, values in result["samples"].items():
        lines.append(f"{name:<40}{statistics.median(values):>12.4g}{_percent(spread(values)):>10}")
    lines += ["", f"{'ratio':<40}{'median':>12}{'spread':>10}   ({result['rounds']} rounds)"]
    for name, value in result["ratios"].items():
        lines.append(f"{name:<40}{value:>12.4g}{_percent(result['spreads'].get(name)):>10}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"± {share:.1%}"


def cpu_name() -> str:
    """Return the processor, as Linux calls it; else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"{models[0]} ({len(models)} cores)"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
