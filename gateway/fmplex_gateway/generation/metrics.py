"""Metrics of generated text: tokens, latencies, prompt tokens found in the prefix cache, and the memory of the KV cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.wire.stats import FlowStats, WorkerStats
from fmplex_gateway.histograms import buckets


def targets(vfms: Iterable[VfmStatus]) -> Iterator[Metric]:
    """Yield the latency targets of the vFMs' SLOs, in seconds."""
    labels = ["backbone", "vfm"]
    ttft = GaugeMetricFamily("fmplex_vfm_ttft_target_seconds", "What the vFM's SLO asks for", labels=labels)
    gap = GaugeMetricFamily("fmplex_vfm_inter_token_target_seconds", "What the vFM's SLO asks for", labels=labels)
    for vfm in vfms:
        slo = vfm.serving.slo if vfm.serving else None
        if slo is not None and slo.ttft_ms:
            ttft.add_metric([vfm.backbone, vfm.name], slo.ttft_ms / 1000)
        if slo is not None and slo.inter_token_ms:
            gap.add_metric([vfm.backbone, vfm.name], slo.inter_token_ms / 1000)
    yield from (ttft, gap)


def memory(workers: Iterable[WorkerStats]) -> Iterator[Metric]:
    """Yield the memory of the KV cache, in bytes, of the workers that generate."""
    labels = ["backbone", "worker"]
    used = GaugeMetricFamily("fmplex_kv_bytes", "Keys and values of growing texts", labels=labels)
    budget = GaugeMetricFamily("fmplex_kv_budget_bytes", "Bytes that keys and values may take", labels=labels)
    prefixes = GaugeMetricFamily("fmplex_kv_prefix_bytes", "Those kept for prompts that begin alike", labels=labels)
    waiting = GaugeMetricFamily("fmplex_kv_waiting_jobs", "Jobs that wait for this memory", labels=labels)
    for w in workers:
        if w.kv_budget_bytes:
            who = [w.backbone, w.worker]
            used.add_metric(who, w.kv_bytes)
            budget.add_metric(who, w.kv_budget_bytes)
            prefixes.add_metric(who, w.prefix_bytes)
            waiting.add_metric(who, w.waiting_memory)
    yield from (used, budget, prefixes, waiting)


def texts(rows: Iterable[tuple[list[str], FlowStats]]) -> Iterator[Metric]:
    """Yield the counters of the flows that have generated: thousands of others need no histograms of tokens.

    A row: backbone, vFM, class and worker, and the counters.
    """
    labels = ["backbone", "vfm", "class", "worker"]
    tokens = CounterMetricFamily("fmplex_vfm_generated_tokens", "Tokens generated", labels=labels)
    prompt = CounterMetricFamily("fmplex_vfm_prompt_tokens", "Tokens of prompts", labels=labels)
    cached = CounterMetricFamily("fmplex_vfm_cached_tokens", "Those that were not computed again", labels=labels)
    held = GaugeMetricFamily("fmplex_vfm_kv_bytes", "Keys and values of its growing texts", labels=labels)
    ttft = HistogramMetricFamily("fmplex_vfm_ttft_seconds", "Enqueue to the first token", labels=labels)
    gap = HistogramMetricFamily("fmplex_vfm_inter_token_seconds", "Each token to the next", labels=labels)
    for which, s in rows:
        if s.tokens or s.prompt_tokens or s.kv_bytes:
            tokens.add_metric(which, s.tokens)
            prompt.add_metric(which, s.prompt_tokens)
            cached.add_metric(which, s.cached_tokens)
            held.add_metric(which, s.kv_bytes)
            ttft.add_metric(which, buckets(s.ttft), sum_value=s.ttft_s)
            gap.add_metric(which, buckets(s.gaps), sum_value=s.gaps_s)
    yield from (tokens, prompt, cached, held, ttft, gap)
