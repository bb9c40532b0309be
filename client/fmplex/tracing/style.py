"""The words and colours that both drawings use."""

from __future__ import annotations

from fmplex.tracing.chart import Chart, Series, WorkerTimeline

SERVICE = "Service: device time charged to each vFM ÷ its weight. Equally steep: shares as their weights. Flatter: less to run."
WAIT = "Queue wait: how long the oldest job of each vFM in a pass had waited until it began"
_LEGEND = "A box is a pass: as wide as it took, as high as its units (tokens), coloured by vFM. Gap: idle. Dashed: pass budget."
BUDGET = "#222222"

_PALETTE = (
    "#2f6fde", "#ef8a17", "#1a9e77", "#d6336c", "#8e5bd0", "#15aabf", "#d4b106", "#8a5a2b", "#5c940d", "#f48fb1", "#37474f",
)  # fmt: skip
_OTHERS, _TRAINING = "#b9c0ca", "#14213d"


def timeline_title(chart: Chart, timeline: WorkerTimeline) -> str:
    """Return the heading of a worker's passes; the first one explains them."""
    heading = f"{timeline.worker}: {timeline.passes:,} passes, busy {100 * timeline.busy:.0f} %"
    return f"{heading}. {_LEGEND}" if timeline is chart.timelines[0] else heading


def coloured_series(chart: Chart) -> list[tuple[Series, str]]:
    """Return the series with a colour each; grey for the vFMs that share one series, nearly black for training."""
    return [(one, _colour(one, place)) for place, one in enumerate(chart.series)]


def _colour(one: Series, place: int) -> str:
    if one.training:
        return _TRAINING
    return _OTHERS if one.several else _PALETTE[place]
