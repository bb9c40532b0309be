"""A chart as an HTML page to zoom into, by plotly; it needs no network.

Few plotly traces on purpose: all bars of a vFM on a worker are one path, and one invisible point in the middle of each carries
the words. A trace for each of thousands of bars would be too slow for a browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plotly import graph_objects as go
from plotly.subplots import make_subplots

from fmplex.tracing.chart import Chart, PassBar, Series
from fmplex.tracing.style import BUDGET, SERVICE, WAIT, coloured_series, timeline_title

_CURVES, _ROW, _WAITS = 330, 230, 240  # pixels
_WORDS = (
    "<b>{name}</b> in pass %{{customdata[0]}} of {worker}<br>%{{customdata[1]}} jobs, %{{customdata[2]}} units<br>"
    "charged %{{customdata[3]}} ms<br>longest wait %{{customdata[4]}} ms<br>"
    "the pass: %{{customdata[5]}} units in %{{customdata[6]}} ms (predicted %{{customdata[7]}})<br>"
    "jobs that it left waiting: %{{customdata[8]}}<extra></extra>"
)


def draw_page(chart: Chart, path: Path) -> None:
    """Draw a chart as an HTML page at `path`. Raises `OSError`."""
    heights = [_CURVES, *[_ROW] * len(chart.timelines), _WAITS]
    titles = [
        SERVICE,
        *(timeline_title(chart, timeline) for timeline in chart.timelines),
        WAIT,
    ]
    figure = make_subplots(
        rows=len(heights), cols=1, shared_xaxes=True, row_heights=heights, vertical_spacing=60 / (sum(heights) + 200),
        subplot_titles=titles,
    )  # fmt: skip
    for one, colour in coloured_series(chart):
        _add(figure, chart, one, colour)
    for place, timeline in enumerate(chart.timelines, 2):
        ends = [*timeline.budget, (chart.seconds, timeline.budget[-1][1])]
        figure.add_trace(_line(ends, "pass budget", BUDGET, dash="dash", width=1), row=place, col=1)
    _lay_out(figure, chart, sum(heights) + 200)
    figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False, "scrollZoom": True})


def _add(figure: go.Figure, chart: Chart, one: Series, colour: str) -> None:
    curve = _line(one.curve, one.label, colour, legend=True)
    figure.add_trace(
        curve.update(legendgroup=one.name, hovertemplate=f"<b>{one.name}</b><br>%{{y:.3f}} s<extra></extra>"), 1, 1
    )
    for place, timeline in enumerate(chart.timelines, 2):
        bars = [bar for bar in one.bars if bar.record.worker == timeline.worker]
        if not bars:
            continue
        figure.add_trace(_bars(bars, colour).update(legendgroup=one.name), place, 1)
        middle = [(b.start + b.record.seconds / 2, b.bottom + b.units / 2) for b in bars]
        figure.add_trace(_points(one, bars, middle, colour, opacity=0), place, 1)
        if one.training:
            continue  # it waits for nobody
        waits = [(b.start, b.wait_ms) for b in bars]
        figure.add_trace(_points(one, bars, waits, colour, size=4), len(chart.timelines) + 2, 1)


def _line(
    points: Sequence[tuple[float, float]], name: str, colour: str, *, legend: bool = False, **line: object
) -> go.Scatter:
    x, y = zip(*((round(t, 4), round(v, 6)) for t, v in points), strict=True)
    return go.Scatter(
        x=x, y=y, name=name, mode="lines", line={"color": colour, "shape": "hv", **line}, showlegend=legend
    )


def _bars(bars: list[PassBar], colour: str) -> go.Scatter:
    x: list[float | None] = []
    y: list[float | None] = []
    for b in bars:
        left, right, top = round(b.start, 4), round(b.start + b.record.seconds, 4), b.bottom + b.units
        x += (left, left, right, right, left, None)
        y += (b.bottom, top, top, b.bottom, b.bottom, None)
    return go.Scatter(
        x=x, y=y, mode="lines", fill="toself", fillcolor=colour, line={"width": 0.3, "color": "white"}, hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip


def _points(
    one: Series, bars: list[PassBar], at: list[tuple[float, float]], colour: str, **marker: float
) -> go.Scattergl:
    """Return a point for each bar, which says what was in it."""
    return go.Scattergl(
        x=[round(x, 4) for x, _ in at], y=[round(y, 2) for _, y in at], mode="markers", marker={"color": colour, **marker},
        customdata=[_facts(bar) for bar in bars],
        hovertemplate=_WORDS.format(name=one.name, worker=bars[0].record.worker),
        legendgroup=one.name, showlegend=False,
    )  # fmt: skip


def _facts(bar: PassBar) -> list[float]:
    record = bar.record
    return [
        record.number, bar.jobs, bar.units, round(1000 * bar.charged_s, 2), round(bar.wait_ms, 1),
        record.units, round(1000 * record.seconds, 2), round(1000 * record.predicted_s, 2), record.waiting,
    ]  # fmt: skip


def _lay_out(figure: go.Figure, chart: Chart, height: int) -> None:
    last = len(chart.timelines) + 2
    figure.update_layout(
        title={"text": f"<b>{chart.title}</b><br><sub>Drag to zoom, double click to see all; click a name to hide it.</sub>"},
        height=height, template="plotly_white", hovermode="closest", hoverdistance=-1, legend={"groupclick": "togglegroup"},
    )  # fmt: skip
    figure.update_annotations(font_size=12, x=0, xanchor="left")
    figure.update_xaxes(range=[0, chart.seconds])
    figure.update_xaxes(title_text="seconds since the recording began", row=last, col=1)
    figure.update_yaxes(title_text="device seconds ÷ weight", rangemode="tozero", row=1, col=1)
    for place in range(2, last):
        figure.update_yaxes(title_text="units in the pass", rangemode="tozero", row=place, col=1)
    figure.update_yaxes(title_text="ms", type="log", row=last, col=1)
