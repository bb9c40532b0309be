"""Metrics of batches: how many are open in the fleet, and what this gateway has made of their lines."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

OUTCOMES = ("completed", "failed")


def families(lines: Mapping[str, int], open_batches: Mapping[str, int] | None) -> list[Metric]:
    """Return the metrics. `lines`: those recorded here, by outcome; `open_batches`: by status, None if the broker is away."""
    recorded = CounterMetricFamily("fmplex_batch_lines", "Lines recorded by this gateway", labels=["outcome"])
    for outcome in OUTCOMES:
        recorded.add_metric([outcome], lines.get(outcome, 0))
    if open_batches is None:
        return [recorded]
    batches = GaugeMetricFamily("fmplex_batches", "Batches that are not over", labels=["status"])
    for status, number in sorted(open_batches.items()):
        batches.add_metric([status], number)
    return [recorded, batches]
