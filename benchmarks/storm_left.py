"""What a storm has left behind: jobs, leases and keys in the broker; memory and descriptors of processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.storm_site import SDK, Site
from fmplex_broker.streams.connection import Client, open_redis
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.keys import Keys
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import CLASSES, Flow
from tests.support.broker import keys_without_ttl

_PATIENCE_S = 30.0
_LOOK_S = 0.5
_WARM_S = 15.0  # younger processes are not judged: they still grow to their usual size
_LEAST_SAMPLES = 4  # nor those of which too little is known
_MORE_BYTES, _MORE_SHARE = 24 << 20, 0.15  # of memory, that a process may come to hold
_MORE_DESCRIPTORS = 48  # connections that are kept for the next crowd of callers


async def left_in_broker(site: Site, backbone: str, vfms: Sequence[str]) -> list[str]:
    """List what should not be in the broker once all callers have gone, after as long as the fleet may need to put it away."""
    queue = QueueClient(open_redis(site.server.url))
    try:
        end = time.monotonic() + _PATIENCE_S
        while True:
            left = await _left(queue, Keys(backbone), vfms, len(site.workers))
            if not left or time.monotonic() > end:
                return left
            await asyncio.sleep(_LOOK_S)
    finally:
        await queue.close()


async def _left(queue: QueueClient, keys: Keys, vfms: Sequence[str], workers: int) -> list[str]:
    redis: Client = queue.redis
    left = []
    for flow in (Flow(vfm, cls) for vfm in vfms for cls in CLASSES):
        if length := await redis.xlen(keys.queue(flow)):
            left.append(f"{length} jobs of {flow.vfm}, {flow.cls}")
    for key in (keys.back, *map(keys.ready, CLASSES)):
        if flows := await redis.zcard(key):
            left.append(f"{flows} flows in {key}")
    live = (await read_fleet(redis, queue.registry)).workers
    left += [f"{worker.held} jobs in the hands of {worker.worker}" for worker in live if worker.held]
    leases = {name.decode() for name in await redis.zrange(keys.leases, 0, -1)}
    if len(leases) != workers:
        left.append(f"leases of {sorted(leases)}, for {workers} workers")
    names = [name.decode() async for name in redis.scan_iter(count=1000)]
    left += [f"dead letters: {name}" for name in names if name.startswith(f"{keys.prefix}dead:")]
    held = f"{keys.prefix}held:"
    left += [name for name in names if name.startswith(held) and name.removeprefix(held) not in leases]
    return left + [f"without a TTL: {name}" for name in await keys_without_ttl(redis)]


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory and open descriptors of a process at a moment (`at`, monotonic seconds)."""

    at: float
    rss: int
    descriptors: int


class Sizes:
    """Samples of every process of a site, one that was started again being another, and of this one, in which the SDK's callers
    are."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._samples: dict[tuple[str, int], list[Sample]] = {}

    def sample(self) -> None:
        """Look at all of them; call it when they have just done the same as at the last time."""
        for name, pid in self._now():
            try:
                process = psutil.Process(pid)
                rss, descriptors = process.memory_info().rss, process.num_fds()
            except psutil.Error:
                continue
            if name == SDK:  # the proxies are here too, which hold two for each connection
                descriptors -= 2 * sum(proxy.open_lines for proxy in self._site.proxies.values())
            self._samples.setdefault((name, pid), []).append(Sample(time.monotonic(), rss, descriptors))

    def _now(self) -> list[tuple[str, int]]:
        return [*((name, member.pid) for name, member in self._site.members.items()), (SDK, os.getpid())]

    def judged(self) -> dict[str, tuple[Sample, Sample]]:
        """Return, of each process that lives and was sampled long enough, the most that it held in the first half of its time
        once it was warm, and the least in the last quarter. A process grows in steps, to where its largest pass takes it; what
        leaks goes on growing."""
        pairs: dict[str, tuple[Sample, Sample]] = {}
        for name, pid in self._now():
            samples = self._samples.get((name, pid), [])
            warm = [sample for sample in samples if sample.at >= samples[0].at + _WARM_S]
            if len(warm) >= _LEAST_SAMPLES:
                pairs[name] = _bound(warm[: len(warm) // 2], max), _bound(warm[len(warm) * 3 // 4 :], min)
        return pairs

    def grown(self) -> list[str]:
        """List the processes whose memory or descriptors have not stayed flat."""
        words = []
        for name, (warm, last) in self.judged().items():
            if last.rss > warm.rss * (1 + _MORE_SHARE) + _MORE_BYTES:
                words.append(f"{name}: from {warm.rss >> 20} to {last.rss >> 20} MiB")
            if last.descriptors > warm.descriptors + _MORE_DESCRIPTORS:
                words.append(f"{name}: from {warm.descriptors} to {last.descriptors} descriptors")
        return words


def _bound(samples: Sequence[Sample], choose: Callable[[Iterable[int]], int]) -> Sample:
    """Return the largest, or smallest, figures of samples."""
    return Sample(
        samples[-1].at, choose(sample.rss for sample in samples), choose(sample.descriptors for sample in samples)
    )
