"""A chart as a PNG, by matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from fmplex.tracing.chart import Chart, PassBar, WorkerTimeline
from fmplex.tracing.style import BUDGET, SERVICE, WAIT, coloured_series, timeline_title

_WIDTH, _CURVES, _ROW, _WAITS = 14.0, 3.6, 2.2, 2.4  # inches
_DPI = 110
_MANY = 200  # passes of a worker; of more the bars get too narrow to be seen apart,
_CLOSE = 60  # so that many of them are shown once more
_SLICES = 250  # points of a line of waits


def draw_picture(chart: Chart, path: Path) -> None:
    """Draw a chart as a PNG at `path`. Raises `OSError`."""
    close = max(chart.timelines, key=lambda timeline: timeline.passes)
    heights = [_CURVES, *[_ROW] * len(chart.timelines), _WAITS, *([_ROW] if close.passes > _MANY else [])]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(heights), 1, height_ratios=heights)
    last = len(chart.timelines) + 1
    _curves(panels[0], chart)
    for axes, timeline in zip(panels[1:], chart.timelines, strict=False):
        _passes(axes, chart, timeline)
        axes.set_title(timeline_title(chart, timeline), loc="left", fontsize=9)
    _waits(panels[last], chart)
    for axes in panels[: last + 1]:
        axes.set_xlim(0, chart.seconds)
    for axes in panels[:last]:
        axes.tick_params(labelbottom=False)
    panels[last].set_xlabel("seconds since the recording began")
    if close.passes > _MANY:
        _closer(panels[-1], panels[1 + chart.timelines.index(close)], chart, close)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, which="both")
    figure.suptitle(chart.title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.savefig(path)


def _curves(axes: Axes, chart: Chart) -> None:
    for one, colour in coloured_series(chart):
        axes.step(*zip(*one.curve, strict=True), where="post", color=colour, label=one.label, linewidth=1.6)
    axes.set_title(SERVICE, loc="left", fontsize=9)
    axes.set_ylabel("device seconds ÷ weight")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _passes(axes: Axes, chart: Chart, timeline: WorkerTimeline, edges: bool | None = None) -> None:
    edges = timeline.passes <= _MANY if edges is None else edges
    for one, colour in coloured_series(chart):
        bars = [_corners(bar) for bar in one.bars if bar.record.worker == timeline.worker]
        axes.add_collection(
            PolyCollection(
                bars, facecolor=colour, edgecolor="white" if edges else colour, linewidth=0.4 if edges else 0.0
            )
        )
    budget = [*timeline.budget, (chart.seconds, timeline.budget[-1][1])]
    axes.step(*zip(*budget, strict=True), where="post", color=BUDGET, linestyle="--", linewidth=1)
    axes.set_ylabel("units in the pass")
    axes.set_ylim(bottom=0)


def _corners(bar: PassBar) -> list[tuple[float, float]]:
    right, top = bar.start + bar.record.seconds, bar.bottom + bar.units
    return [(bar.start, bar.bottom), (bar.start, top), (right, top), (right, bar.bottom)]


def _closer(axes: Axes, whole: Axes, chart: Chart, timeline: WorkerTimeline) -> None:
    """Draw the passes in the middle of a long timeline once more, and mark in the `whole` where they are."""
    starts = sorted({bar.start for one in chart.series for bar in one.bars if bar.record.worker == timeline.worker})
    first = (len(starts) - _CLOSE) // 2
    begin, end = starts[first], starts[first + _CLOSE]
    _passes(axes, chart, timeline, edges=True)
    axes.set_xlim(begin, end)
    axes.set_title(f"Closer: {_CLOSE} passes of {timeline.worker}, marked above", loc="left", fontsize=9)
    axes.set_xlabel("seconds since the recording began")
    whole.axvspan(begin, end, facecolor="none", edgecolor=BUDGET, linewidth=1)


def _waits(axes: Axes, chart: Chart) -> None:
    waiting = [(one, colour) for one, colour in coloured_series(chart) if not one.training]  # that waits for nobody
    for one, colour in waiting:
        axes.plot(*zip(*one.longest_waits(_SLICES), strict=True), color=colour, linewidth=0.9, marker=".", markersize=3)
    axes.set_title(WAIT, loc="left", fontsize=9)
    axes.set_ylabel("ms")
    if not waiting:
        return
    axes.set_yscale("log")
    for show in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        show(LogFormatter(minor_thresholds=(2, 0.5)))
