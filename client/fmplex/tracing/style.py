"""What both drawings say and which colours they use."""

from __future__ import annotations

from fmplex.tracing.chart import Chart, ChartRow, Series

SERVICE = "Service: device time charged to each vFM ÷ its weight. Equally steep: shares as their weights. Flatter: less to run."
WAIT = "Queue wait: how long the oldest job of each vFM in a pass had waited until it began"
_BOXES = "A box is a pass: as wide as it took, as high as its units (tokens), coloured by vFM. Gap: idle. Dashed: pass budget."
BUDGET = "#222222"

_PALETTE = (
    "#2f6fde", "#ef8a17", "#1a9e77", "#d6336c", "#8e5bd0", "#15aabf", "#d4b106", "#8a5a2b", "#5c940d", "#f48fb1", "#37474f",
)  # fmt: skip
_OTHERS = "#b9c0ca"


def busy(chart: Chart, row: ChartRow) -> str:
    """The heading of a worker's passes; the first one explains them."""
    heading = f"{row.worker}: {row.passes:,} passes, busy {100 * row.busy:.0f} %"
    return f"{heading}. {_BOXES}" if row is chart.rows[0] else heading


def colours(chart: Chart) -> list[tuple[Series, str]]:
    """The series with a colour each; those that are not told apart are grey."""
    return [(one, _OTHERS if one.several else _PALETTE[place]) for place, one in enumerate(chart.series)]
