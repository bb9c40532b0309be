"""A loss curve as a PNG, by matplotlib, and as a page to zoom into, by plotly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from fmplex.tunes.curve import Curve

_COLOURS = {"training loss": "#2f6fde", "validation loss": "#ef8a17", "validation score": "#1a9e77"}
_BEST = "#222222"


def draw_picture(curve: Curve, path: Path) -> None:
    """Draw a curve as a PNG at `path`. Raises `OSError`."""
    rows = [lines for lines in (curve.losses, curve.scores) if lines]
    figure = Figure(figsize=(10.0, 3.2 * len(rows) + 0.6), dpi=110, layout="constrained")
    panels: Any = figure.subplots(len(rows), 1, squeeze=False, sharex=True)
    for axes, lines in zip(panels[:, 0], rows, strict=True):
        for line in lines:
            axes.plot(line.steps, line.values, color=_COLOURS[line.name], label=line.name, marker=".", linewidth=1.4)
        if curve.best is not None:
            axes.axvline(curve.best, color=_BEST, linestyle="--", linewidth=1, label=f"best: step {curve.best}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    panels[-1, 0].set_xlabel("step")
    figure.suptitle(curve.title, fontsize=11, x=0.01, ha="left")
    figure.savefig(path)


def draw_page(curve: Curve, path: Path) -> None:
    """Write a curve as a page at `path` that needs nothing else. Raises `OSError`."""
    rows = [lines for lines in (curve.losses, curve.scores) if lines]
    figure = make_subplots(rows=len(rows), cols=1, shared_xaxes=True)
    for row, lines in enumerate(rows, 1):
        for line in lines:
            figure.add_trace(
                go.Scatter(
                    x=line.steps, y=line.values, name=line.name, mode="lines+markers", marker={"size": 4},
                    line={"color": _COLOURS[line.name]},
                ),
                row=row, col=1,
            )  # fmt: skip
    if curve.best is not None:
        figure.add_vline(curve.best, line={"color": _BEST, "dash": "dash"}, annotation_text=f"best: step {curve.best}")
    figure.update_layout(title={"text": curve.title}, template="plotly_white", hovermode="x unified")
    figure.update_xaxes(title_text="step", row=len(rows), col=1)
    figure.write_html(path, include_plotlyjs=True)
