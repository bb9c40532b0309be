"""The picture of `benchmarks.coserving`: what training gets against what requests lose, a point for each way to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks.curves import save

_LOADS = (20, 50, 80)
_KINDS = {"encoder": ("encoder", "requests"), "generation": ("generation", "gaps, or first tokens,")}
_WAYS = {
    "spend_80": ("ours, spend .8", "#2f6fde", "o"), "spend_50": ("ours, spend .5", "#7fa8ee", "o"),
    "idle": ("when idle", "#8a8f98", "s"), "every_1": ("after every pass", "#d1495b", "^"),
    "every_4": ("… every 4", "#e0a030", "^"), "every_16": ("… every 16", "#c9c06a", "^"),
    "static_25": ("a quarter of the device", "#3d9970", "D"), "static_50": ("a half", "#8e5ea2", "D"),
    "static_75": ("three quarters", "#444444", "D"),
}  # fmt: skip
_Points = dict[str, tuple[float, float]]


def draw_coserving(result: dict[str, Any], path: Path) -> None:
    """Draw a row for each kind of requests, a column for each load. Below and to the right is better; the line joins the ways of
    which no other one is better in both."""
    simulated = result["config"].get("simulated")
    if simulated is None:
        return
    figure, every = plt.subplots(2, len(_LOADS), figsize=(13.5, 7.0), layout="constrained", sharey=True)
    for row, (kind, (title, what)) in zip(every, _KINDS.items(), strict=True):
        for axes, load in zip(row, _LOADS, strict=True):
            points = {
                way: (100 * seen["share"], 100 * (1 - min(seen["attained"], seen["firsts"])))
                for way in _WAYS
                if (seen := simulated[kind].get(f"{way}_at_{load}"))
            }
            _panel(axes, points)
            axes.set_title(f"{title} at {load} %: {what} late, %", fontsize=10)
    every[0][0].legend(fontsize=8, frameon=False)
    for axes in every[-1]:
        axes.set_xlabel("device time that training had, %", fontsize=8)
    save(figure, result, path)


def _panel(axes: Any, points: _Points) -> None:
    front = sorted(at for at in points.values() if not any(_better(other, at) for other in points.values()))
    axes.plot(*zip(*front, strict=True), color="#2f6fde", linewidth=0.8, alpha=0.4)
    for way, (share, late) in points.items():
        label, colour, marker = _WAYS[way]
        axes.plot(share, late, marker, color=colour, label=label, markersize=6)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlim=(0, 100), ylim=(-0.2, 120))
    axes.tick_params(labelsize=8)
    axes.grid(which="major", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _better(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] <= other[1]
