"""Prometheus metrics of training beside inference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from fmplex_broker.wire.stats import WorkerStats


def training(workers: Iterable[WorkerStats]) -> Iterator[Metric]:
    """Yield the counters of the workers that take tuning jobs."""
    labels = ["backbone", "worker"]
    units = CounterMetricFamily("fmplex_training_units", "Units of training run", labels=[*labels, "kind"])
    seconds = CounterMetricFamily("fmplex_training_seconds", "Device time of units", labels=[*labels, "kind"])
    tokens = CounterMetricFamily("fmplex_training_tokens", "Tokens trained", labels=["backbone", "vfm", "worker"])
    touched = CounterMetricFamily("fmplex_training_touched_requests", "Requests that waited for a unit", labels=labels)
    late = CounterMetricFamily("fmplex_training_late_requests", "Those late because of that", labels=labels)
    halts = CounterMetricFamily("fmplex_training_halts", "Loans cut short for who came", labels=labels)
    jobs = GaugeMetricFamily("fmplex_training_jobs", "Tuning jobs whose units run here", labels=labels)
    slack = GaugeMetricFamily("fmplex_training_slack_seconds", "How long the device could be lent", labels=labels)
    spend = GaugeMetricFamily("fmplex_training_spend", "Part of targets that may be used", labels=[*labels, "target"])
    error = GaugeMetricFamily("fmplex_training_cost_error", "Relative error of predicted units", labels=labels)
    for w in workers:
        if (t := w.training) is None:
            continue
        who = [w.backbone, w.worker]
        for kind, n in t.units.items():
            units.add_metric([*who, kind], n)
            seconds.add_metric([*who, kind], t.seconds.get(kind, 0.0))
        for vfm, n in t.tokens.items():
            tokens.add_metric([w.backbone, vfm, w.worker], n)
        for counter, value in ((touched, t.touched), (late, t.late), (halts, t.halts)):
            counter.add_metric(who, value)
        for gauge, figure in ((jobs, t.jobs), (slack, t.slack_s), (error, t.error)):
            gauge.add_metric(who, figure)
        spend.add_metric([*who, "latency"], t.spend)
        spend.add_metric([*who, "inter_token"], t.spend_tokens)
    yield from (units, seconds, tokens, touched, late, halts, jobs, slack, spend, error)
