"""The two curves as a PNG, by matplotlib, and as a page to zoom into, by plotly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from fmplex.demo.tuning.curves import Curves

_SCORE, _P99, _P50, _TARGET, _TRAINING = "#1a9e77", "#2f6fde", "#9bb8ee", "#d6336c", "#14213d"
_BELOW = "Latency of the neighbours' requests, as their callers saw it, in the last five seconds"


def draw_picture(curves: Curves, path: Path) -> None:
    """Draw the curves as a PNG at `path`. Raises `OSError`."""
    figure = Figure(figsize=(11.0, 6.4), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _score(above, curves)
    below.plot(*_xy(curves.p99), color=_P99, linewidth=1.6, label="p99")
    below.plot(*_xy(curves.p50), color=_P50, linewidth=1.2, label="p50")
    below.axhline(curves.target_ms, color=_TARGET, linestyle="--", linewidth=1, label="target")
    below.set_ylim(0, max([1.2 * curves.target_ms, *(1.05 * ms for _, ms in curves.p99)]))
    below.set_title(_BELOW, loc="left", fontsize=9)
    below.set_ylabel("ms")
    below.set_xlabel("seconds")
    below.set_xlim(0, curves.seconds)
    for axes in (above, below):
        axes.axvspan(
            curves.training.begin, curves.training.end, color=_TRAINING, alpha=0.06, linewidth=0, label="training"
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(curves.title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    figure.savefig(path)


def _above(curves: Curves) -> str:
    return f"Held-out {curves.metric} of the version of {curves.vfm} that served, as the gateway answered"


def _score(axes: Axes, curves: Curves) -> None:
    axes.step(*_xy(_held(curves)), where="post", color=_SCORE, linewidth=1.8, label=f"held-out {curves.metric}")
    axes.plot(*_xy(curves.scores), color=_SCORE, marker=".", linestyle="none")
    for place, one in enumerate(curves.deployed):
        label = "next version" if place == 0 else None
        axes.axvline(one.at, color=_TRAINING, linestyle=":", linewidth=0.8, label=label)
    axes.set_title(_above(curves), loc="left", fontsize=9)
    axes.set_ylabel(curves.metric)


def _held(curves: Curves) -> list[tuple[float, float]]:
    """Return the scores, the last one held to the end."""
    return [*curves.scores, (curves.seconds, curves.scores[-1][1])] if curves.scores else []


def _xy(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def draw_page(curves: Curves, path: Path) -> None:
    """Write the curves as a page at `path` that needs nothing else. Raises `OSError`."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, subplot_titles=[_above(curves), _BELOW])
    for points, name, row, line in (
        (_held(curves), f"held-out {curves.metric}", 1, {"color": _SCORE, "shape": "hv"}),
        (curves.p99, "p99", 2, {"color": _P99}),
        (curves.p50, "p50", 2, {"color": _P50}),
    ):
        figure.add_trace(_line(points, name, line), row, 1)
    figure.add_hline(curves.target_ms, line={"color": _TARGET, "dash": "dash"}, annotation_text="target", row=2, col=1)
    for one in curves.deployed:
        figure.add_vline(one.at, line={"color": _TRAINING, "dash": "dot", "width": 1}, row=1, col=1)
    figure.add_vrect(curves.training.begin, curves.training.end, fillcolor=_TRAINING, opacity=0.06, line_width=0)
    figure.update_layout(
        title={"text": f"<b>{curves.title}</b>"}, template="plotly_white", hovermode="x unified", height=700
    )
    figure.update_xaxes(range=[0, curves.seconds])
    figure.update_xaxes(title_text="seconds", row=2, col=1)
    figure.update_yaxes(title_text="ms", rangemode="tozero", row=2, col=1)
    figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False, "scrollZoom": True})


def _line(points: list[tuple[float, float]], name: str, line: dict[str, Any]) -> go.Scatter:
    x, y = _xy(points)
    return go.Scatter(x=x, y=y, name=name, mode="lines", line=line)
