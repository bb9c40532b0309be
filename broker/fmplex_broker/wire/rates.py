"""Rates of a fleet between two readings, as plain values for whoever draws them. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.vfm import Slo
from fmplex_broker.wire.fleet_view import Depth, FleetView
from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, Flow
from fmplex_broker.wire.stats import FlowStats, TrainingStats, WorkerStats, by_flow, quantile


def fleet_rates(before: FleetView, now: FleetView) -> dict[str, Any]:
    """Compute what happened between two readings: `seconds`, `registered`, `vfms` (one row each and class, busiest first,
    offline only where there is something to tell; those that generate have a `text`), `backbones` and `workers`
    (one row each, with the `ledger` of its device; those that take tuning jobs have a `training`).

    `share_received`: part of the device time that its class had of the backbone; `share_promised`: its weight among those active
    in it. `queued_bytes` are the vFM's in both classes. Names of values end in their units; `busy`, `cached` and `hit_rate` are
    parts of 1. None: there was nothing to measure.
    """
    seconds = max((now.now_ms - before.now_ms) / 1000, 1e-3)
    known = {w.worker: w for w in before.workers}
    # A worker that has just come starts from nothing; one that has gone is in neither sum.
    earlier = by_flow([known.get(w.worker, _unused(w)) for w in now.workers])
    later = by_flow(now.workers)
    spent = {flow: later[flow].since(earlier.get(flow, FlowStats())) for flow in later}
    rows = []
    for status in now.vfms:
        for cls in CLASSES:
            flow = Flow(status.name, cls)
            row = _row(status, cls, spent.get(flow, FlowStats()), now.depths.get(flow, Depth()), seconds)
            row["queued_bytes"] = now.nbytes.get(status.name, 0)
            if cls == INTERACTIVE or row["active"]:
                rows.append(row)
    _add_shares(rows)
    rows.sort(key=lambda r: (CLASSES.index(r["class"]), -(r["share_received"] or 0), -r["waiting"], r["vfm"]))
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


def _add_shares(rows: list[dict[str, Any]]) -> None:
    """Add the shares promised and received; they are shares of what one class had of one backbone's devices."""
    used: dict[tuple[str, str], float] = defaultdict(float)
    weights: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        used[row["backbone"], row["class"]] += row["device_s_per_s"]
        weights[row["backbone"], row["class"]] += row["weight"] if row["active"] else 0.0
    for row in rows:
        weight, total = (sums[row["backbone"], row["class"]] for sums in (weights, used))
        row["share_promised"] = row["weight"] / weight if row["active"] and weight else None
        row["share_received"] = row["device_s_per_s"] / total if total > 0 and row["active"] else None


def _row(status: VfmStatus, cls: str, stats: FlowStats, depth: Depth, seconds: float) -> dict[str, Any]:
    serving = status.serving
    row = {
        "vfm": status.name,
        "class": cls,
        "backbone": status.backbone,
        "status": status.status,
        "active": bool(stats.done or stats.failed or stats.charged_s or depth.waiting or depth.pending),
        "waiting": depth.waiting,
        "pending": depth.pending,
        "oldest_ms": depth.oldest_ms,
        "max_queued_bytes": serving.limits.max_pending_bytes if serving else None,
        "jobs_per_s": (stats.done + stats.failed) / seconds,
        "failed_per_s": stats.failed / seconds,
        "p50_ms": quantile(stats.latency, 0.5),
        "p99_ms": quantile(stats.latency, 0.99),
        "target_ms": serving.slo.latency_ms if serving and cls == INTERACTIVE else None,
        "wait_p99_ms": quantile(stats.wait, 0.99),
        "device_s_per_s": stats.charged_s / seconds,
        "weight": serving.weight if serving else 0.0,
        "deficit_s": stats.deficit_s,
    }
    if serving is not None and "generation" in serving.kinds:
        row["text"] = _text_row(serving.slo if cls == INTERACTIVE else Slo(), stats, seconds)
    return row


def _text_row(slo: Slo, stats: FlowStats, seconds: float) -> dict[str, Any]:
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
        "ledger": _ledger_row(now),
        "training": _training_row(now.training, before.training or TrainingStats(), seconds) if now.training else None,
    }


def _ledger_row(now: WorkerStats) -> dict[str, Any] | None:
    """Return the memory of a worker's device: bytes that it may use there (`device`), and of each part those that it may use and
    `held` ones, None where these are not known."""
    if not now.ledger:
        return None
    held = now.held_bytes
    parts = {part: {"bytes": n, "held": held.get(part)} for part, n in now.ledger.items() if part != "device"}
    return {"device": now.ledger["device"], **parts}


def _training_row(now: TrainingStats, before: TrainingStats, seconds: float) -> dict[str, Any]:
    """Return the rates of training on a worker; `share`: its part of the device's time."""
    touched = now.touched - before.touched
    return {
        "jobs": now.jobs,
        "tokens_per_s": (now.tokens.total() - before.tokens.total()) / seconds,
        "units_per_s": (now.units.total() - before.units.total()) / seconds,
        "share": min(1.0, (sum(now.seconds.values()) - sum(before.seconds.values())) / seconds),
        "slack_ms": 1000 * now.slack_s,
        "spend": now.spend,
        "spend_tokens": now.spend_tokens,
        "halts_per_s": (now.halts - before.halts) / seconds,
        "touched_per_s": touched / seconds,
        "late": (now.late - before.late) / touched if touched else None,
    }


def queue_rates(before: FleetView, now: FleetView) -> dict[str, Any]:
    """Compute what happened to the queues between two readings: `seconds`, and `queues`, a row for each flow that has jobs or has
    had some meanwhile, the one with the most first. `queued_per_s`: jobs that came, `ended_per_s`: jobs that were answered or
    cancelled."""
    seconds = max((now.now_ms - before.now_ms) / 1000, 1e-3)
    homes = {status.name: status.backbone for status in now.vfms}
    rows = []
    for flow, depth in now.depths.items():
        earlier = before.depths.get(flow, Depth())
        if depth.queued < earlier.queued:  # removed meanwhile, and deployed again
            earlier = Depth()
        came, went = depth.queued - earlier.queued, depth.ended - earlier.ended
        if came or went or depth.waiting or depth.pending:
            row: dict[str, Any] = {"vfm": flow.vfm, "class": flow.cls, "backbone": homes.get(flow.vfm, "")}
            row |= {"waiting": depth.waiting, "pending": depth.pending, "oldest_ms": depth.oldest_ms}
            rows.append(row | {"queued_per_s": came / seconds, "ended_per_s": went / seconds})
    rows.sort(key=lambda r: (-r["waiting"] - r["pending"], r["vfm"], r["class"]))
    return {"seconds": seconds, "queues": rows}
