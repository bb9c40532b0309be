"""`fmplex top`: two looks at the fleet and what changed between them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table

from fmplex.cli.common import out, print_json
from fmplex_broker.stats import VfmStats, WorkerStats, by_vfm, quantile
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.fleet import Depth, FleetView, look
from fmplex_broker.streams.registry import Registry


async def run_top(url: str, interval: float, limit: int, *, once: bool, as_json: bool) -> None:
    """Draw until interrupted, or once."""
    redis = open_redis(url)
    registry = Registry(redis, Scripts(redis))
    try:
        before = await look(redis, registry)
        with Live(console=out, auto_refresh=False, screen=not once, transient=False) as live:
            while True:
                # Workers speak once a second: looks closer together would show nothing in between.
                await asyncio.sleep(max(interval, 1.05))
                now = await look(redis, registry)
                rows = compare(before, now)
                if as_json:
                    print_json(rows)
                else:
                    live.update(_draw(rows, limit), refresh=True)
                if once:
                    return
                before = now
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    finally:
        await redis.aclose()


def compare(before: FleetView, now: FleetView) -> dict[str, Any]:
    """What happened between two looks, as plain values: `vfms` (busiest first) and `workers`."""
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
        weight = status.serving.weight if status.serving else 0.0
        stats, depth = spent.get(status.name, VfmStats()), now.depths.get(status.name, Depth())
        active = bool(stats.done or stats.failed or depth.waiting or depth.pending)
        charged[status.backbone] += stats.charged_s
        weights[status.backbone] += weight if active else 0.0
        target = status.serving.slo.latency_ms if status.serving else None
        row = _row(status.name, status.status, weight, stats, depth, seconds, active)
        rows.append(row | {"backbone": status.backbone, "target_ms": target})
    for row in rows:
        weight, total = weights[row["backbone"]], charged[row["backbone"]]
        row["share_promised"] = row["weight"] / weight if row["active"] and weight else None
        row["share_received"] = spent[row["vfm"]].charged_s / total if row["vfm"] in spent and total > 0 else None
    rows.sort(key=lambda r: (-(r["share_received"] or 0), -r["waiting"], r["vfm"]))
    workers = [_worker(w, known.get(w.worker), seconds) for w in now.workers]
    return {"seconds": seconds, "registered": now.registered, "vfms": rows, "workers": workers}


def _row(
    name: str, status: str, weight: float, stats: VfmStats, depth: Depth, seconds: float, active: bool
) -> dict[str, Any]:
    return {
        "vfm": name,
        "status": status,
        "active": active,
        "waiting": depth.waiting,
        "pending": depth.pending,
        "oldest_ms": depth.oldest_ms,
        "jobs_per_s": (stats.done + stats.failed) / seconds,
        "failed_per_s": stats.failed / seconds,
        "p50_ms": quantile(stats.latency, 0.5),
        "p99_ms": quantile(stats.latency, 0.99),
        "wait_p99_ms": quantile(stats.wait, 0.99),
        "device_s_per_s": stats.charged_s / seconds,
        "weight": weight,
        "deficit_s": stats.deficit_s,
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
    }


def _draw(rows: dict[str, Any], limit: int) -> Group:
    vfms = Table(box=None, header_style="bold", title_justify="left")
    vfms.add_column("vFM", no_wrap=True)
    for column in (
        "waiting",
        "pending",
        "oldest",
        "jobs/s",
        "failed/s",
        "p50 ms",
        "p99 ms",
        "target",
        "wait p99",
        "device",
        "share",
        "promised",
        "deficit",
    ):
        vfms.add_column(column, justify="right", no_wrap=True)
    shown = rows["vfms"][:limit]
    for r in shown:
        vfms.add_row(
            r["vfm"] if r["status"] == "serving" else f"{r['vfm']} ({r['status']})",
            str(r["waiting"]), str(r["pending"]), f"{r['oldest_ms'] / 1000:.1f}s" if r["oldest_ms"] else "-",
            f"{r['jobs_per_s']:.1f}", f"{r['failed_per_s']:.1f}", _ms(r["p50_ms"]), _ms(r["p99_ms"]),
            f"{r['target_ms']}" if r["target_ms"] else "-", _ms(r["wait_p99_ms"]),
            f"{100 * r['device_s_per_s']:.1f}%", _percent(r["share_received"]), _percent(r["share_promised"]),
            f"{1000 * r['deficit_s']:+.0f} ms" if r["deficit_s"] else "-",
        )  # fmt: skip
    workers = Table(box=None, header_style="bold")
    workers.add_column("worker", no_wrap=True)
    for column in (
        "device",
        "passes/s",
        "tokens/pass",
        "budget",
        "busy",
        "held",
        "resident",
        "hits",
        "loads/s",
        "memory",
        "up",
    ):
        workers.add_column(column, justify="right")
    for w in rows["workers"]:
        memory = w["memory_bytes"] / 2**20
        accelerator = f" + {w['device_bytes'] / 2**30:.2f} GiB" if w["device_bytes"] else ""
        workers.add_row(
            w["worker"], w["device"], f"{w['passes_per_s']:.1f}", f"{w['tokens_per_pass']:.0f}",
            f"{w['budget_units']} ({1000 * w['budget_s']:.0f} ms)", f"{100 * w['busy']:.0f}%",
            str(w["held"]), f"{w['resident']} ({w['resident_bytes'] / 2**20:.0f} MiB)", _percent(w["hit_rate"]),
            f"{w['loads_per_s']:.1f}", f"{memory:.0f} MiB{accelerator}", f"{w['uptime_s']:.0f}s",
        )  # fmt: skip
    more = rows["registered"] - len(shown)
    return Group(vfms, f"[dim]… and {more} quieter vFMs[/]" if more > 0 else "", workers)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
