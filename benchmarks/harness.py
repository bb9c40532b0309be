"""What every benchmark shares: interleaved rounds, medians with their spread, one JSON object or a table.

The machine is never quiet, so variants take turns within each round and are compared round by round: a ratio is the
median over the rounds of (variant / base), and a disturbance hits both sides of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    """The command line. `rounds` None: the benchmark's default; `quick`: a small version that only shows it works; `more`:
    what this benchmark alone takes."""

    rounds: int | None
    quick: bool
    json: bool
    more: argparse.Namespace = field(default_factory=argparse.Namespace)


@dataclass(frozen=True, slots=True)
class Report:
    """`ratios`: the claim. `samples`: what was measured, name → one number a round (seconds unless config says else)."""

    benchmark: str
    ratios: dict[str, float]
    samples: dict[str, list[float]]
    config: dict[str, Any] = field(default_factory=dict)
    device: str = ""


def interleave(variants: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds per variant and round. Every other round runs in reverse order, so that nobody is always first."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-warm_up, rounds):
        names = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in names:
            begun = time.perf_counter()
            variants[name]()
            took = time.perf_counter() - begun
            if number >= 0:
                seconds[name].append(took)
    return seconds


async def interleave_async(
    variants: Mapping[str, Callable[[], Awaitable[object]]], rounds: int, warm_up: int = 1
) -> None:
    """`interleave` for coroutines that keep their own samples."""
    for number in range(-warm_up, rounds):
        names = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in names:
            await variants[name]()


def without_pauses() -> None:
    """What is there by now is left out of garbage collections: a load generator that halts for 0.2 s measures its own pause."""
    gc.collect()
    gc.freeze()


def ratio(samples: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of name / base."""
    return statistics.median(a / b for a, b in zip(samples[name], samples[base], strict=True))


def spread(values: list[float]) -> float:
    """Half the distance between the quartiles, as a share of the median: 0.02 is ± 2 %."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / middle


def main(
    run: Callable[[Options], Report], description: str, add: Callable[[argparse.ArgumentParser], None] | None = None
) -> None:
    """Parse the command line (`add` gives it more arguments), run, print. With `--json` only the object reaches stdout."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: the benchmark's own)")
    parser.add_argument("--quick", action="store_true", help="a small version, to see that it works")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
    if add is not None:
        add(parser)
    given = vars(parser.parse_args())
    common = {name: given.pop(name) for name in ("rounds", "quick", "json")}
    options = Options(**common, more=argparse.Namespace(**given))
    stdout, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not break the object
    try:
        report = run(options)
    finally:
        sys.stdout = stdout
    print(_as_json(report) if options.json else _as_table(report))


def _as_json(report: Report) -> str:
    keys = ("benchmark", "ratios", "samples", "config", "device")
    return json.dumps({key: getattr(report, key) for key in keys})


def _as_table(report: Report) -> str:
    lines = [f"{report.benchmark} on {report.device}"]
    lines += [f"  {key} = {value}" for key, value in report.config.items()]
    lines += ["", f"{'measured':<28}{'median':>12}{'spread':>10}"]
    for name, values in report.samples.items():
        lines.append(f"{name:<28}{statistics.median(values):>12.4g}{f'± {spread(values):.1%}':>10}")
    lines += ["", f"{'ratio':<28}{'value':>12}"]
    lines += [f"{name:<28}{value:>12.4g}" for name, value in report.ratios.items()]
    return "\n".join(lines)


def cpu_name() -> str:
    """The processor, as Linux calls it; else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"{models[0]} ({len(models)} cores)"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
