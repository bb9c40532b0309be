"""The fleet as Redis shows it, for `fmplex top` and `/metrics`: the statistics that workers publish, and the queues."""

from __future__ import annotations

from collections.abc import Sequence

from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.streams.catalog import Catalog
from fmplex_broker.streams.connection import Client, broker_errors
from fmplex_broker.streams.keys import BYTES, GROUP, MAX_BYTES, Keys
from fmplex_broker.streams.tracing import add_report
from fmplex_broker.wire.fleet_view import Depth, FleetView, Stored
from fmplex_broker.wire.messages import CLASSES, Flow
from fmplex_broker.wire.passes import PassRecord
from fmplex_broker.wire.stats import WorkerStats, decode_stats, encode_stats

STATS_TTL_MS = 10_000
_WAITED = 64  # queues whose oldest entry is read, per backbone and reading
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


async def read_fleet(redis: Client, registry: Catalog) -> FleetView:
    """Read the state of all backbones. Its cost grows with the vFMs on which something happens, not with those registered."""
    async with broker_errors():
        seconds, micros = await redis.time()
    view = FleetView(seconds * 1000 + micros // 1000)
    listed, view.registered = await registry.page(limit=_LISTED)
    for backbone in await registry.backbones():
        keys = Keys(backbone)
        workers = await _workers(redis, keys, await registry.live_workers(backbone))
        first = {s.name: s for s in listed if s.backbone == backbone}
        busy = await _busy(redis, keys) | {name for w in workers for name in w.vfms}
        others = await registry.states(backbone, sorted(busy - first.keys()))
        found = [*first.values(), *(s for s in others if s is not None)]
        view.workers += workers
        view.vfms += found
        view.depths |= await _depths(redis, keys, [v.name for v in found], view.now_ms)
        view.stored[backbone] = await _stored(redis, keys, view.depths, found)
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


async def _stored(redis: Client, keys: Keys, depths: dict[str, Depth], vfms: Sequence[VfmStatus]) -> Stored:
    """Read how many bytes wait on a backbone, and complete the depths of its vFMs that have jobs."""
    names = [v.name for v in vfms if v.name in depths]
    async with broker_errors():
        *raw, total, most = await redis.hmget(keys.vfms, [*(name + BYTES for name in names), BYTES, MAX_BYTES])
    for name, value in zip(names, raw, strict=True):
        depths[name].nbytes = int(value or 0)
    return Stored(int(total or 0), int(most or 0))


def _decoded(raw: bytes | None) -> WorkerStats | None:
    """Decode statistics; None for a worker that has published none yet, or of another version."""
    try:
        return decode_stats(raw) if raw is not None else None
    except (ValueError, TypeError, KeyError):
        return None


async def _depths(redis: Client, keys: Keys, names: list[str], now_ms: int) -> dict[str, Depth]:
    flows = [Flow(name, cls) for name in names for cls in CLASSES]
    async with broker_errors():
        pipe = redis.pipeline(transaction=False)
        for flow in flows:
            pipe.xlen(keys.queue(flow))
        lengths = await pipe.execute()
        busy = [(flow, n) for flow, n in zip(flows, lengths, strict=True) if n]
        # XPENDING fails on a stream without a group, which only means that nothing was delivered yet.
        pipe = redis.pipeline(transaction=False)
        for flow, _ in busy:
            pipe.xpending(keys.queue(flow), GROUP)
        pendings = await pipe.execute(raise_on_error=False)
        for refused in pendings:
            if isinstance(refused, Exception) and not str(refused).startswith("NOGROUP"):
                raise refused
        pipe = redis.pipeline(transaction=False)
        for flow, _ in busy[:_WAITED]:
            pipe.xrange(keys.queue(flow), count=1)
        oldest = await pipe.execute()
    out: dict[str, Depth] = {}
    for i, ((flow, length), pending) in enumerate(zip(busy, pendings, strict=True)):
        depth = out.setdefault(flow.vfm, Depth())
        held = int(pending["pending"]) if isinstance(pending, dict) else 0
        depth.waiting += length - held
        depth.pending += held
        if i < _WAITED and oldest[i]:
            depth.oldest_ms = max(depth.oldest_ms, now_ms - int(oldest[i][0][0].split(b"-")[0]))
    return out
