"""Rates of a fleet between two readings, as plain values for whoever draws them. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.vfm import Slo
from fmplex_broker.wire.fleet_view import Depth, FleetView
from fmplex_broker.wire.stats import VfmStats, WorkerStats, by_vfm, quantile


def fleet_rates(before: FleetView, now: FleetView) -> dict[str, Any]:
    """Compute what happened between two readings: `seconds`, `registered`, `vfms` (one row each, busiest first; those that
    generate have a `text`), `backbones` and `workers` (one row each).

    `share_received`: part of the device time of the vFM's backbone; `share_promised`: its weight among the active ones. Names
    of values end in their units; `busy`, `cached` and `hit_rate` are parts of 1. None: there was nothing to measure.
    """
    seconds = max((now.now_ms - before.now_ms) / 1000, 1e-3)
    known = {w.worker: w for w in before.workers}
    # A worker that has just come starts from nothing; one that has gone is in neither sum.
    earlier = by_vfm([known.get(w.worker, _unused(w)) for w in now.workers])
    later = by_vfm(now.workers)
    spent = {name: later[name].since(earlier.get(name, VfmStats())) for name in later}
    rows = []
    for status in now.vfms:
        stats, depth = spent.get(status.name, VfmStats()), now.depths.get(status.name, Depth())
        rows.append(_vfm_row(status, stats, depth, seconds))
    _add_shares(rows, spent)
    rows.sort(key=lambda r: (-(r["share_received"] or 0), -r["waiting"], r["vfm"]))
    workers = [_worker_row(w, known.get(w.worker, _unused(w)), seconds) for w in now.workers]
    backbones = [
        {"backbone": name, "queued_bytes": stored.nbytes, "max_queued_bytes": stored.most}
        for name, stored in now.stored.items()
    ]
    return {
        "seconds": seconds,
        "registered": now.registered,
        "vfms": rows,
        "backbones": backbones,
        "workers": workers,
    }


def _unused(worker: WorkerStats) -> WorkerStats:
    """Return the statistics of a worker that has done nothing yet."""
    return WorkerStats(worker.worker, worker.backbone, worker.device, worker.pid, worker.host)


def _add_shares(rows: list[dict[str, Any]], spent: dict[str, VfmStats]) -> None:
    """Add the shares promised and received; they are shares of one backbone's devices."""
    charged: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    for row in rows:
        charged[row["backbone"]] += spent[row["vfm"]].charged_s if row["vfm"] in spent else 0.0
        weights[row["backbone"]] += row["weight"] if row["active"] else 0.0
    for row in rows:
        weight, total = weights[row["backbone"]], charged[row["backbone"]]
        row["share_promised"] = row["weight"] / weight if row["active"] and weight else None
        row["share_received"] = spent[row["vfm"]].charged_s / total if row["vfm"] in spent and total > 0 else None


def _vfm_row(status: VfmStatus, stats: VfmStats, depth: Depth, seconds: float) -> dict[str, Any]:
    serving = status.serving
    row = {
        "vfm": status.name,
        "backbone": status.backbone,
        "status": status.status,
        "active": bool(stats.done or stats.failed or depth.waiting or depth.pending),
        "waiting": depth.waiting,
        "pending": depth.pending,
        "oldest_ms": depth.oldest_ms,
        "queued_bytes": depth.nbytes,
        "max_queued_bytes": serving.limits.max_pending_bytes if serving else None,
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
        row["text"] = _text_row(serving.slo, stats, seconds)
    return row


def _text_row(slo: Slo, stats: VfmStats, seconds: float) -> dict[str, Any]:
    """Return the rates of the texts of a vFM that generates."""
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


def _worker_row(now: WorkerStats, before: WorkerStats, seconds: float) -> dict[str, Any]:
    passes, r = now.passes - before.passes, now.residency
    hits = r.hits - before.residency.hits
    return {
        "worker": now.worker,
        "backbone": now.backbone,
        "host": now.host,
        "device": now.device,
        "passes_per_s": passes / seconds,
        "tokens_per_pass": (now.pass_units - before.pass_units) / passes if passes else 0.0,
        "budget_units": now.budget_units,
        "budget_s": now.budget_s,
        "busy": min(1.0, (now.busy_s - before.busy_s) / seconds),
        "held": now.held,
        "resident": r.versions,
        "resident_bytes": r.device_bytes,
        "hit_rate": hits / jobs if (jobs := hits + r.misses - before.residency.misses) else None,
        "loads_per_s": (sum(r.loads.values()) - sum(before.residency.loads.values())) / seconds,
        "memory_bytes": now.memory_bytes,
        "device_bytes": now.device_bytes,
        "backbone_bytes": now.backbone_bytes,
        "uptime_s": now.uptime_s,
        "kv_bytes": now.kv_bytes,
        "kv_budget_bytes": now.kv_budget_bytes,
        "prefix_bytes": now.prefix_bytes,
        "waiting_memory": now.waiting_memory,
    }
