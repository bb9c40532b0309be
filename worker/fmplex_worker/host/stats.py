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
    """Keys and values, in bytes: what the rows of each vFM may hold (`held`), what all of them hold (`used`), of a `budget`;
    `prefixes`: held by prompts that are kept. `waiting`: jobs that wait for room."""

    held: Mapping[str, int]
    used: int
    budget: int
    prefixes: int
    waiting: int


class Meter:
    """Counters of one worker process; plain additions on the event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._process = psutil.Process()
        self._started = time.monotonic()
        self._memory_due = 0.0
        self._vfms: dict[str, VfmStats] = {}  # last heard of last
        self.stats = WorkerStats("", engine.info.name, engine.info.device, os.getpid(), socket.gethostname())
        self.stats.backbone_bytes = engine.info.memory_bytes

    def _vfm(self, name: str) -> VfmStats:
        """Its counters; it becomes the one that was last heard of."""
        stats = self._vfms.pop(name, None) or VfmStats()
        self._vfms[name] = stats
        return stats

    def answered(self, vfm: str, *, failed: bool, latency_ms: float, wait_ms: float) -> None:
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
        """Of a text, so long after its job was enqueued."""
        stats = self._vfm(vfm)
        stats.tokens += 1
        stats.ttft_s += ms / 1000
        stats.ttft[bucket_of(ms)] += 1

    def next_tokens(self, vfm: str, count: int, ms: float) -> None:
        """So long after the one before."""
        stats = self._vfm(vfm)
        stats.tokens += count
        stats.gaps_s += ms / 1000
        stats.gaps[bucket_of(ms / max(count, 1))] += count

    def generated(self, vfm: str, output: Mapping[str, Any]) -> None:
        """A text has ended."""
        stats = self._vfm(vfm)
        stats.prompt_tokens += output["prompt_tokens"]
        stats.cached_tokens += output["cached_tokens"]

    def ran(self, vfm_units: dict[str, int], seconds: float) -> None:
        """One pass has landed."""
        self.stats.passes += 1
        self.stats.busy_s += seconds
        for name, units in vfm_units.items():
            self._vfm(name).units += units
            self.stats.pass_units += units

    @property
    def memory_is_old(self) -> bool:
        """To read it takes 20 ms a GB, which a pass that runs beside it may lose: under load it is read seldom."""
        return time.monotonic() > self._memory_due

    def memory(self) -> None:
        """Read the process's memory (call it off the loop)."""
        begun = time.monotonic()
        # Files of weights are mapped and shared, so resident memory would count them for every process.
        with suppress(psutil.Error):  # where the system forbids to look, the last figure stands
            self.stats.memory_bytes = int(self._process.memory_full_info().uss)
        self.stats.device_bytes = self._engine.device_bytes
        now = time.monotonic()
        self._memory_due = now + (now - begun) / _READING

    def snapshot(
        self,
        worker: str,
        *,
        held: int,
        residency: ResidencyStats,
        shares: dict[str, Share],
        cost: CostModel,
        budget: int,
        memory: Memory,
    ) -> WorkerStats:
        """The counters as they stand, with what the scheduler knows of the vFMs on which anything happened last: thousands need
        no word every second."""
        s = self.stats
        s.worker, s.held, s.residency = worker, held, residency
        s.cost_error, s.budget_units, s.budget_s = cost.error, budget, cost.predict_pass(budget)
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
