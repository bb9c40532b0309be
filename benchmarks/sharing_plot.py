"""The bars of `benchmarks.sharing`: latency at both loads, maximum rate, memory; ours beside each rival."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl

from benchmarks.harness import Report

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the backend is chosen

_RIVALS = {"processes": "a process\nper task", "colocated": "a copy\nper task", "one_at_a_time": "one task\na pass"}
# Title, sample of the rival, sample of ours, factor to the title's unit.
_PANELS = (
    ("mean latency at 50 %, ms", "latency_50_{}_mean_s", "latency_50_ours_vs_{}_mean_s", 1e3),
    ("mean latency at 90 %, ms", "latency_90_{}_mean_s", "latency_90_ours_vs_{}_mean_s", 1e3),
    ("maximum rate, jobs/s", "max_rate_{}_per_s", "max_rate_ours_vs_{}_per_s", 1.0),
    ("unique memory, MiB", "memory_{}_bytes", "memory_ours_vs_{}_bytes", 2.0**-20),
)


def draw(report: Report, path: Path) -> None:
    """Write the plot; medians over the rounds, lines from the least to the most."""
    figure, panels = plt.subplots(1, len(_PANELS), figsize=(16, 4), layout="constrained")
    for axes, (title, theirs, ours, factor) in zip(panels, _PANELS, strict=True):
        for shift, label, colour, key in ((-0.2, "rival", "#b0b7c3", theirs), (0.2, "FMplex", "#2f6fde", ours)):
            values = [[v * factor for v in report.samples[key.format(rival)]] for rival in _RIVALS]
            heights = [statistics.median(v) for v in values]
            down = [h - min(v) for h, v in zip(heights, values, strict=True)]
            up = [max(v) - h for h, v in zip(heights, values, strict=True)]
            places = [i + shift for i in range(len(_RIVALS))]
            bars = axes.bar(places, heights, 0.4, yerr=[down, up], label=label, color=colour, capsize=2)
            axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(_RIVALS)), list(_RIVALS.values()), fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.suptitle(
        f"{report.config['tasks']}; {report.config['backbone']}; loads: % of the rival's maximum", fontsize=9
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
