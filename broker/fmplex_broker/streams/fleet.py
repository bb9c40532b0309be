"""The fleet as Redis shows it, for `fmplex top` and `/metrics`: the statistics that workers publish, and the queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fmplex_broker.streams.connection import Arg, Client, Scripts, broker_errors
from fmplex_broker.streams.keys import BYTES, MAX_BYTES, Keys
from fmplex_broker.streams.registry import Registry
from fmplex_broker.streams.tracing import add_report
from fmplex_broker.wire.fleet_view import Depth, FleetView, Stored
from fmplex_broker.wire.messages import CLASSES, Flow
from fmplex_broker.wire.passes import PassRecord
from fmplex_broker.wire.stats import WorkerStats, decode_stats, encode_stats

STATS_TTL_MS = 10_000
_FLOWS = 256  # whose queues are read in one script
_LISTED = 200  # vFMs that are shown whether or not anything happens on them
_READY = 1000  # flows with waiting work that are read, per backbone and class


async def publish(redis: Client, stats: WorkerStats, passes: Sequence[PassRecord] | None = None) -> bool:
    """Publish a worker's statistics, once a second and in one round trip; `passes`: of the last second, if it records them.

    True while somebody traces passes. Raises `BrokerUnavailable`.
    """
    keys = Keys(stats.backbone)
    async with broker_errors():
        pipe = redis.pipeline(transaction=False)
        pipe.exists(keys.tracing)
        pipe.set(keys.stats(stats.worker), encode_stats(stats), px=STATS_TTL_MS)
        if passes is not None:
            add_report(pipe, keys, stats.worker, passes)
        traced, *_ = await pipe.execute()
    return bool(traced)


async def read_fleet(redis: Client, registry: Registry) -> FleetView:
    """Read the state of all backbones. Its cost grows with the vFMs on which something happens, not with those registered."""
    async with broker_errors():
        seconds, micros = await redis.time()
    view = FleetView(seconds * 1000 + micros // 1000)
    listed, view.registered = await registry.page(limit=_LISTED)
    for backbone in await registry.backbones():
        keys = Keys(backbone)
        workers = await _workers(redis, keys, await registry.live_workers(backbone))
        first = {s.name: s for s in listed if s.backbone == backbone}
        busy = await _busy(redis, keys) | {flow.vfm for w in workers for flow in w.flows}
        others = await registry.states(backbone, sorted(busy - first.keys()))
        found = [*first.values(), *(s for s in others if s is not None)]
        view.workers += workers
        view.vfms += found
        view.depths |= await _depths(registry.scripts, keys, [v.name for v in found], view.now_ms)
        names = {flow.vfm for flow, depth in view.depths.items() if depth.waiting or depth.pending}
        view.stored[backbone] = await _stored(redis, keys, view.nbytes, [v.name for v in found if v.name in names])
    view.vfms.sort(key=lambda s: s.name)
    return view


async def _workers(redis: Client, keys: Keys, names: list[str]) -> list[WorkerStats]:
    if not names:
        return []
    async with broker_errors():
        raw = await redis.mget([keys.stats(name) for name in names])
    return [stats for r in raw if (stats := _decoded(r)) is not None]


async def _busy(redis: Client, keys: Keys) -> set[str]:
    """Return the names of vFMs with work that no worker has taken."""
    async with broker_errors():
        ready = [await redis.zrange(keys.ready(cls), 0, _READY - 1) for cls in CLASSES]
        back = await redis.zrange(keys.back, 0, _READY - 1)
    return {vfm.decode() for part in ready for vfm in part} | {flow.decode().partition(":")[2] for flow in back}


async def _stored(redis: Client, keys: Keys, nbytes: dict[str, int], names: Sequence[str]) -> Stored:
    """Read how many bytes wait on a backbone, and add to `nbytes` those of its vFMs of these names."""
    async with broker_errors():
        *raw, total, most = await redis.hmget(keys.vfms, [*(name + BYTES for name in names), BYTES, MAX_BYTES])
    for name, value in zip(names, raw, strict=True):
        nbytes[name] = int(value or 0)
    return Stored(int(total or 0), int(most or 0))


def _decoded(raw: bytes | None) -> WorkerStats | None:
    """Decode statistics; None for a worker that has published none yet, or of another version."""
    try:
        return decode_stats(raw) if raw is not None else None
    except (ValueError, TypeError, KeyError):
        return None


async def _depths(scripts: Scripts, keys: Keys, names: list[str], now_ms: int) -> dict[Flow, Depth]:
    """Read the queues of vFMs; of those that have never had a job there is none."""
    flows = [Flow(name, cls) for name in names for cls in CLASSES]
    rows: list[Any] = []
    for start in range(0, len(flows), _FLOWS):
        part: list[Arg] = [f"{flow.cls}:{flow.vfm}" for flow in flows[start : start + _FLOWS]]
        rows += await scripts("queues", keys.vfms, part)
    out: dict[Flow, Depth] = {}
    for flow, (jobs, held, ever, oldest) in zip(flows, rows, strict=True):
        if ever:
            since_ms = now_ms - int(oldest.partition(b"-")[0]) if oldest else 0
            out[flow] = Depth(jobs - held, held, max(since_ms, 0), ever)
    return out
