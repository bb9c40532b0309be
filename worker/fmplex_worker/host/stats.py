"""What this worker counts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import psutil

from fmplex_broker.wire.stats import ResidencyStats, VfmStats, WorkerStats, bucket_of
from fmplex_worker.protocol import Engine
from fmplex_worker.scheduling import CostModel, Share

_MOST = 500  # vFMs that a worker tells of
_READING = 0.002  # of the time may be spent reading memory under load


class Memory(NamedTuple):
    """Bytes of keys and values: what the sequences of each vFM may hold (`held`), what all of them hold (`used`), of a `budget`;
    `prefixes`: held by prompts that are kept. `waiting`: flows whose jobs wait for memory."""

    held: Mapping[str, int]
    used: int
    budget: int
    prefixes: int
    waiting: int


class Meter:
    """Counters of one life of a worker, whose id is `worker`; plain additions on the event loop."""

    def __init__(self, worker: str, engine: Engine, cost: CostModel) -> None:
        self._engine = engine
        self._cost = cost
        self._process = psutil.Process()
        self._started = time.monotonic()
        self._memory_due = 0.0
        self._vfms: dict[str, VfmStats] = {}  # last heard of last
        self.stats = WorkerStats(worker, engine.info.name, engine.info.device, os.getpid(), socket.gethostname())
        self.stats.backbone_bytes = engine.info.memory_bytes

    def _vfm(self, name: str) -> VfmStats:
        """Return a vFM's counters; it becomes the one that was last heard of."""
        stats = self._vfms.pop(name, None) or VfmStats()
        self._vfms[name] = stats
        return stats

    def answered(self, vfm: str, *, failed: bool, latency_ms: float, wait_ms: float) -> None:
        """Count a reply, `latency_ms` after its job was enqueued, which waited `wait_ms` for its first pass."""
        stats = self._vfm(vfm)
        if failed:
            stats.failed += 1
        else:
            stats.done += 1
        stats.latency_s += latency_ms / 1000
        stats.latency[bucket_of(latency_ms)] += 1
        stats.wait_s += wait_ms / 1000
        stats.wait[bucket_of(wait_ms)] += 1

    def first_token(self, vfm: str, ms: float) -> None:
        """Record the time to first token, `ms` after the job was enqueued."""
        stats = self._vfm(vfm)
        stats.tokens += 1
        stats.ttft_s += ms / 1000
        stats.ttft[bucket_of(ms)] += 1

    def next_tokens(self, vfm: str, count: int, ms: float) -> None:
        """Record `count` more tokens of a text, `ms` after the one before."""
        stats = self._vfm(vfm)
        stats.tokens += count
        stats.gaps_s += ms / 1000
        stats.gaps[bucket_of(ms / max(count, 1))] += count

    def generated(self, vfm: str, output: Mapping[str, Any]) -> None:
        """Count the tokens of the prompt of a text that has ended."""
        stats = self._vfm(vfm)
        stats.prompt_tokens += output["prompt_tokens"]
        stats.cached_tokens += output["cached_tokens"]

    def ran(self, vfm_units: dict[str, int], seconds: float) -> None:
        """Count a pass: the units of each vFM in it, and how long it took."""
        self.stats.passes += 1
        self.stats.busy_s += seconds
        for name, units in vfm_units.items():
            self._vfm(name).units += units
            self.stats.pass_units += units

    @property
    def memory_is_old(self) -> bool:
        """Whether the process's memory should be read again. That takes 20 ms a GB, which a pass that runs beside it may lose:
        under load it is read seldom."""
        return time.monotonic() > self._memory_due

    def memory(self) -> None:
        """Read the process's memory. Call it off the event loop."""
        begun = time.monotonic()
        # Files of weights are mapped and shared, so resident memory would count them for every process.
        with suppress(psutil.Error):  # where the system forbids to look, the last figure stands
            self.stats.memory_bytes = int(self._process.memory_full_info().uss)
        self.stats.device_bytes = self._engine.device_bytes
        now = time.monotonic()
        self._memory_due = now + (now - begun) / _READING

    def snapshot(
        self,
        *,
        held: int,
        residency: ResidencyStats,
        shares: dict[str, Share],
        budget: int,
        memory: Memory,
    ) -> WorkerStats:
        """Return the counters as they stand, with what the scheduler knows of the vFMs on which anything happened last: thousands
        need no word every second."""
        s = self.stats
        s.held, s.residency = held, residency
        s.cost_error, s.budget_units, s.budget_s = self._cost.error, budget, self._cost.predict_pass(budget)
        s.kv_bytes, s.kv_budget_bytes, s.prefix_bytes = memory.used, memory.budget, memory.prefixes
        s.waiting_memory = memory.waiting
        s.uptime_s = time.monotonic() - self._started
        for gone in self._vfms.keys() - shares.keys():
            del self._vfms[gone]  # removed: its counters have been seen
        lately = list(self._vfms)[-_MOST:]
        for name in lately:
            share, vfm = shares[name], self._vfms[name]
            vfm.weight, vfm.charged_s, vfm.deficit_s = share.weight, share.charged, share.deficit
            vfm.kv_bytes = memory.held.get(name, 0)
        s.vfms = {name: self._vfms[name] for name in lately}
        return s
