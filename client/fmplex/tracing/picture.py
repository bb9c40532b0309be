"""A chart as a PNG, by matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from fmplex.tracing.chart import Box, Chart, ChartRow
from fmplex.tracing.style import BUDGET, SERVICE, WAIT, busy, colours

_WIDTH, _CURVES, _ROW, _WAITS = 14.0, 3.6, 2.2, 2.4  # inches
_DPI = 110
_MANY = 200  # passes of a worker; of more the boxes get too narrow to be told apart,
_CLOSE = 60  # so that many of them are shown once more
_SLICES = 250  # points of a line of waits


def draw_picture(chart: Chart, path: Path) -> None:
    close = max(chart.rows, key=lambda row: row.passes)
    heights = [_CURVES, *[_ROW] * len(chart.rows), _WAITS, *([_ROW] if close.passes > _MANY else [])]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.6), dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(heights), 1, height_ratios=heights)
    last = len(chart.rows) + 1
    _curves(panels[0], chart)
    for axes, row in zip(panels[1:], chart.rows, strict=False):
        _passes(axes, chart, row)
        axes.set_title(busy(chart, row), loc="left", fontsize=9)
    _waits(panels[last], chart)
    for axes in panels[: last + 1]:
        axes.set_xlim(0, chart.seconds)
    for axes in panels[:last]:
        axes.tick_params(labelbottom=False)
    panels[last].set_xlabel("seconds since the recording began")
    if close.passes > _MANY:
        _closer(panels[-1], panels[1 + chart.rows.index(close)], chart, close)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, which="both")
    figure.suptitle(chart.title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.savefig(path)


def _curves(axes: Axes, chart: Chart) -> None:
    for one, colour in colours(chart):
        axes.step(*zip(*one.curve, strict=True), where="post", color=colour, label=one.label, linewidth=1.6)
    axes.set_title(SERVICE, loc="left", fontsize=9)
    axes.set_ylabel("device seconds ÷ weight")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _passes(axes: Axes, chart: Chart, row: ChartRow, edges: bool | None = None) -> None:
    edges = row.passes <= _MANY if edges is None else edges
    for one, colour in colours(chart):
        boxes = [_corners(box) for box in one.boxes if box.of.worker == row.worker]
        axes.add_collection(
            PolyCollection(
                boxes, facecolor=colour, edgecolor="white" if edges else colour, linewidth=0.4 if edges else 0.0
            )
        )
    budget = [*row.budget, (chart.seconds, row.budget[-1][1])]
    axes.step(*zip(*budget, strict=True), where="post", color=BUDGET, linestyle="--", linewidth=1)
    axes.set_ylabel("units in the pass")
    axes.set_ylim(bottom=0)


def _corners(box: Box) -> list[tuple[float, float]]:
    right, top = box.start + box.of.seconds, box.bottom + box.units
    return [(box.start, box.bottom), (box.start, top), (right, top), (right, box.bottom)]


def _closer(axes: Axes, whole: Axes, chart: Chart, row: ChartRow) -> None:
    """The passes in the middle of a long row, and where they are in it."""
    starts = sorted({box.start for one in chart.series for box in one.boxes if box.of.worker == row.worker})
    first = (len(starts) - _CLOSE) // 2
    begin, end = starts[first], starts[first + _CLOSE]
    _passes(axes, chart, row, edges=True)
    axes.set_xlim(begin, end)
    axes.set_title(f"Closer: {_CLOSE} passes of {row.worker}, marked above", loc="left", fontsize=9)
    axes.set_xlabel("seconds since the recording began")
    whole.axvspan(begin, end, facecolor="none", edgecolor=BUDGET, linewidth=1)


def _waits(axes: Axes, chart: Chart) -> None:
    for one, colour in colours(chart):
        axes.plot(*zip(*one.longest_waits(_SLICES), strict=True), color=colour, linewidth=0.9, marker=".", markersize=3)
    axes.set_title(WAIT, loc="left", fontsize=9)
    axes.set_ylabel("ms")
    axes.set_yscale("log")
    for show in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        show(LogFormatter(minor_thresholds=(2, 0.5)))
