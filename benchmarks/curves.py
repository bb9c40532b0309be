"""The pictures that are curves: latency against load, and what a policy does to a victim. See `benchmarks/plot.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

_LINES = {"ours": ("FMplex", "#2f6fde"), "processes": ("process a task", "#d9822b"),
          "colocated": ("copy a task", "#3d9970"), "one_at_a_time": ("one task a pass", "#8e5ea2")}  # fmt: skip
_COLOURS = {"drr": "#2f6fde", "fifo": "#d1495b", "bfq": "#e0a030", "stfq": "#7a5195", "rr": "#8a8f98", "vtc": "#4d9078"}


def draw_load_curves(result: dict[str, Any], path: Path) -> None:
    """Draw a column for each kind of arrivals; above the mean latency, below the p99. Hollow: the queue grows without bound."""
    kinds, whats = ("poisson", "bursty"), ("mean", "p99")
    config, samples = result["config"], result["samples"]
    figure, every = plt.subplots(2, 2, figsize=(9.6, 6.4), layout="constrained", sharex=True, sharey="row")
    for row, what in zip(every, whats, strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            for way, (label, colour) in _LINES.items():
                values = [samples[f"{kind}_{load}_{way}_{what}_s"] for load in config["loads"]]
                _line(axes, config["loads"], values, label, colour, config["queue_grows"][way])
            axes.set_title(f"{kind} arrivals, {what} latency, ms", fontsize=10)
            axes.set_yscale("log")
            axes.tick_params(labelsize=8)
            axes.grid(axis="y", which="both", linewidth=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in every[-1]:
        axes.set_xticks(config["loads"])
        axes.set_xlabel("arrivals, % of FMplex's maximum rate", fontsize=8)
    every[0][0].legend(fontsize=8, frameon=False)
    save(figure, result, path)


def _line(axes: Any, loads: list[int], rounds: list[list[float]], label: str, colour: str, growing: list[int]) -> None:
    quartiles = [statistics.quantiles([1e3 * v for v in values], n=4, method="inclusive") for values in rounds]
    low, middle, high = zip(*quartiles, strict=True)
    axes.fill_between(loads, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(loads, middle, color=colour, label=label, linewidth=1.4)
    for load, ms in zip(loads, middle, strict=True):
        axes.plot(load, ms, "o", color=colour, markersize=5, markerfacecolor="white" if load in growing else colour)


def save(figure: Any, result: dict[str, Any], path: Path) -> None:
    """Write a picture, with the benchmark's name and device above it."""
    figure.suptitle(f"{result['benchmark']} on {result['device']}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_fairness(result: dict[str, Any], path: Path) -> None:
    """Draw a row a backbone: the victim through one run; what each policy costs whom; and what smaller passes do."""
    backbones = result["config"]["backbones"]
    figure, every = plt.subplots(
        len(backbones), 3, figsize=(13.5, 3.4 * len(backbones)), layout="constrained", squeeze=False
    )
    for row, backbone in zip(every, backbones, strict=True):
        _run(row[0], result["config"], backbone)
        _trade(row[1], result["samples"], f"{backbone}_lora")
        _budgets(row[2], result["samples"], result["config"]["pass_units"][backbone], f"{backbone}_lora")
        for axes in row:
            axes.tick_params(labelsize=8)
            axes.grid(which="both", linewidth=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    save(figure, result, path)


def _run(axes: Any, config: dict[str, Any], backbone: str) -> None:
    begin, seconds, _ = config["phases_s"]
    axes.axvspan(begin, begin + seconds, color="#f0f0f0")
    for way in ("fifo", "bfq", "drr"):
        due, late = zip(*config["example"][backbone][way], strict=True)
        axes.plot(due, [1e3 * s for s in late], color=_COLOURS[way], label=way, linewidth=1)
    axes.set(yscale="log", xlabel="s")
    axes.set_title(f"{backbone}: the victim's latency, ms (grey: aggressor 20 ×)", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def _trade(axes: Any, samples: dict[str, list[float]], case: str) -> None:
    for way, colour in _COLOURS.items():
        if f"{case}_{way}_victim_p99_s" not in samples:
            continue  # not all policies are measured by default
        across, up = (
            [1e3 * v for v in samples[f"{case}_{way}_{what}"]] for what in ("aggressor_mean_s", "victim_p99_s")
        )
        axes.plot(across, up, ".", color=colour, markersize=3)
        x, y = statistics.median(across), statistics.median(up)
        axes.plot(x, y, "o", color=colour)
        axes.annotate(way, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="aggressor's mean latency in the burst, ms")
    axes.set_title("victim's p99 in the burst, ms", fontsize=10)


def _budgets(axes: Any, samples: dict[str, list[float]], units: int, case: str) -> None:
    """Draw latency against throughput: `…_drr` had the whole budget, `…_drr-0.25` a quarter of it."""
    ways = {key.removeprefix(f"{case}_").partition("_")[0] for key in samples if key.startswith(f"{case}_drr")}
    parts = sorted((float(way.partition("-")[2] or 1), way) for way in ways)
    rate, late = (
        [statistics.median(samples[f"{case}_{way}_{what}"]) for _, way in parts]
        for what in ("tokens_per_s", "victim_p99_s")
    )
    axes.plot(rate, [1e3 * s for s in late], "o-", color=_COLOURS["drr"], linewidth=1)
    for (part, _), x, y in zip(parts, rate, late, strict=True):
        label = f"{part * units:.0f} units"
        axes.annotate(label, (x, 1e3 * y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.margins(x=0.25)
    axes.set(ylim=(0, None), xlabel="tokens/s in the burst")
    axes.set_title("drr: victim's p99, ms, by pass budget", fontsize=10)


CURVES: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "load_curves": draw_load_curves,
    "fairness": draw_fairness,
}
