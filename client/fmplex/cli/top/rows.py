"""What happened between two looks, as plain values."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fmplex_broker.specs.vfm import Slo

from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.streams.fleet import Depth, FleetView
from fmplex_broker.wire.stats import VfmStats, WorkerStats, by_vfm, quantile


def compare(before: FleetView, now: FleetView) -> dict[str, Any]:
    """`vfms` (busiest first; those that generate have a `text`) and `workers`."""
    seconds = max((now.now_ms - before.now_ms) / 1000, 1e-3)
    known = {w.worker: w for w in before.workers}
    # A worker that has just come starts from nothing; one that has gone is in neither sum.
    earlier = by_vfm(
        [known.get(w.worker, WorkerStats(w.worker, w.backbone, w.device, w.pid, w.host)) for w in now.workers]
    )
    later = by_vfm(now.workers)
    spent = {name: later[name].since(earlier.get(name, VfmStats())) for name in later}
    rows = []
    charged: dict[str, float] = defaultdict(float)  # by backbone: a share is a share of one backbone's devices
    weights: dict[str, float] = defaultdict(float)
    for status in now.vfms:
        stats, depth = spent.get(status.name, VfmStats()), now.depths.get(status.name, Depth())
        row = _row(status, stats, depth, seconds)
        charged[status.backbone] += stats.charged_s
        weights[status.backbone] += row["weight"] if row["active"] else 0.0
        rows.append(row)
    for row in rows:
        weight, total = weights[row["backbone"]], charged[row["backbone"]]
        row["share_promised"] = row["weight"] / weight if row["active"] and weight else None
        row["share_received"] = spent[row["vfm"]].charged_s / total if row["vfm"] in spent and total > 0 else None
    rows.sort(key=lambda r: (-(r["share_received"] or 0), -r["waiting"], r["vfm"]))
    workers = [_worker(w, known.get(w.worker), seconds) for w in now.workers]
    return {"seconds": seconds, "registered": now.registered, "vfms": rows, "workers": workers}


def _row(status: VfmStatus, stats: VfmStats, depth: Depth, seconds: float) -> dict[str, Any]:
    serving = status.serving
    row = {
        "vfm": status.name,
        "backbone": status.backbone,
        "status": status.status,
        "active": bool(stats.done or stats.failed or depth.waiting or depth.pending),
        "waiting": depth.waiting,
        "pending": depth.pending,
        "oldest_ms": depth.oldest_ms,
        "jobs_per_s": (stats.done + stats.failed) / seconds,
        "failed_per_s": stats.failed / seconds,
        "p50_ms": quantile(stats.latency, 0.5),
        "p99_ms": quantile(stats.latency, 0.99),
        "target_ms": serving.slo.latency_ms if serving else None,
        "wait_p99_ms": quantile(stats.wait, 0.99),
        "device_s_per_s": stats.charged_s / seconds,
        "weight": serving.weight if serving else 0.0,
        "deficit_s": stats.deficit_s,
    }
    if serving is not None and "generation" in serving.kinds:
        row["text"] = _text(serving.slo, stats, seconds)
    return row


def _text(slo: Slo, stats: VfmStats, seconds: float) -> dict[str, Any]:
    """Of a vFM that generates."""
    return {
        "tokens_per_s": stats.tokens / seconds,
        "prompt_tokens_per_s": stats.prompt_tokens / seconds,
        "cached": stats.cached_tokens / stats.prompt_tokens if stats.prompt_tokens else None,
        "ttft_p50_ms": quantile(stats.ttft, 0.5),
        "ttft_p99_ms": quantile(stats.ttft, 0.99),
        "ttft_target_ms": slo.ttft_ms,
        "inter_token_p50_ms": quantile(stats.gaps, 0.5),
        "inter_token_p99_ms": quantile(stats.gaps, 0.99),
        "inter_token_target_ms": slo.inter_token_ms,
        "kv_bytes": stats.kv_bytes,
    }


def _worker(now: WorkerStats, before: WorkerStats | None, seconds: float) -> dict[str, Any]:
    base = before or WorkerStats(now.worker, now.backbone, now.device, now.pid, now.host)
    passes, r = now.passes - base.passes, now.residency
    hits = r.hits - base.residency.hits
    return {
        "worker": now.worker,
        "host": now.host,
        "device": now.device,
        "passes_per_s": passes / seconds,
        "tokens_per_pass": (now.pass_units - base.pass_units) / passes if passes else 0.0,
        "budget_units": now.budget_units,
        "budget_s": now.budget_s,
        "busy": min(1.0, (now.busy_s - base.busy_s) / seconds),
        "held": now.held,
        "resident": r.versions,
        "resident_bytes": r.device_bytes,
        "hit_rate": hits / jobs if (jobs := hits + r.misses - base.residency.misses) else None,
        "loads_per_s": (sum(r.loads.values()) - sum(base.residency.loads.values())) / seconds,
        "memory_bytes": now.memory_bytes,
        "device_bytes": now.device_bytes,
        "backbone_bytes": now.backbone_bytes,
        "uptime_s": now.uptime_s,
        "kv_bytes": now.kv_bytes,
        "kv_budget_bytes": now.kv_budget_bytes,
        "prefix_bytes": now.prefix_bytes,
        "waiting_memory": now.waiting_memory,
    }
