"""What this worker counts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import psutil

from fmplex_broker.wire.messages import INTERACTIVE, Flow
from fmplex_broker.wire.stats import FlowStats, ResidencyStats, WorkerStats, bucket_of
from fmplex_worker.host.training_books import TrainingBooks
from fmplex_worker.protocol import Engine
from fmplex_worker.scheduling import CostModel, Scheduler, Share

_MOST = 500  # flows that a worker tells of
_READING = 0.002  # of the time may be spent reading memory under load


class Memory(NamedTuple):
    """Bytes of keys and values: what the sequences of each flow may hold (`held`), what all of them hold (`used`), of a `budget`;
    `prefixes`: held by prompts that are kept. `waiting`: flows whose jobs wait for memory."""

    held: Mapping[Flow, int]
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
        self._flows: dict[Flow, FlowStats] = {}  # last heard of last
        self.stats = WorkerStats(worker, engine.info.name, engine.info.device, os.getpid(), socket.gethostname())
        self.stats.backbone_bytes = engine.info.memory_bytes
        self.stats.ledger = engine.info.ledger._asdict()
        self.books: TrainingBooks | None = None  # where there is training: they judge whom it makes late

    def _flow(self, flow: Flow) -> FlowStats:
        """Return a flow's counters; it becomes the one that was last heard of."""
        stats = self._flows.pop(flow, None) or FlowStats()
        self._flows[flow] = stats
        return stats

    def answered(self, flow: Flow, *, failed: bool, latency_ms: float, wait_ms: float) -> None:
        """Count a reply, `latency_ms` after its job was enqueued, which waited `wait_ms` for its first pass."""
        stats = self._flow(flow)
        if failed:
            stats.failed += 1
        else:
            stats.done += 1
        stats.latency_s += latency_ms / 1000
        stats.latency[bucket_of(latency_ms)] += 1
        stats.wait_s += wait_ms / 1000
        stats.wait[bucket_of(wait_ms)] += 1
        if self.books is not None and flow.cls == INTERACTIVE:
            self.books.answered(flow.vfm, latency_ms)

    def first_token(self, flow: Flow, ms: float) -> None:
        """Record the time to first token, `ms` after the job was enqueued."""
        stats = self._flow(flow)
        stats.tokens += 1
        stats.ttft_s += ms / 1000
        stats.ttft[bucket_of(ms)] += 1
        if self.books is not None and flow.cls == INTERACTIVE:
            self.books.first_token(flow.vfm, ms)

    def next_tokens(self, flow: Flow, count: int, ms: float) -> None:
        """Record `count` more tokens of a text, `ms` after the one before."""
        stats = self._flow(flow)
        stats.tokens += count
        stats.gaps_s += ms / 1000
        stats.gaps[bucket_of(ms / max(count, 1))] += count
        if self.books is not None and flow.cls == INTERACTIVE:
            self.books.next_tokens(flow.vfm, count, ms)

    def generated(self, flow: Flow, output: Mapping[str, Any]) -> None:
        """Count the tokens of the prompt of a text that has ended."""
        stats = self._flow(flow)
        stats.prompt_tokens += output["prompt_tokens"]
        stats.cached_tokens += output["cached_tokens"]

    def ran(self, flow_units: dict[Flow, int], seconds: float) -> None:
        """Count a pass: the units of each flow in it, and how long it took."""
        self.stats.passes += 1
        self.stats.busy_s += seconds
        for flow, units in flow_units.items():
            self._flow(flow).units += units
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
        scheduler: Scheduler,
        memory: Memory,
    ) -> WorkerStats:
        """Return the counters as they stand, with what the scheduler knows of the flows on which anything happened last:
        thousands need no word every second."""
        s, budget, shares = self.stats, scheduler.budget, scheduler.shares()
        s.held, s.residency = held, residency
        s.cost_error, s.budget_units, s.budget_s = self._cost.error, budget, self._cost.predict_pass(budget)
        s.kv_bytes, s.kv_budget_bytes, s.prefix_bytes = memory.used, memory.budget, memory.prefixes
        s.waiting_memory = memory.waiting
        s.uptime_s = time.monotonic() - self._started
        for gone in [flow for flow in self._flows if flow not in shares and flow.vfm not in scheduler.weights]:
            del self._flows[gone]  # removed: its counters have been seen
        lately = list(self._flows.items())[-_MOST:]
        for flow, stats in lately:
            share = shares.get(flow) or Share(scheduler.weights.get(flow.vfm, 1.0), 0.0, 0.0, 0)
            stats.weight, stats.charged_s, stats.deficit_s = share.weight, share.charged, share.deficit
            stats.kv_bytes = memory.held.get(flow, 0)
        s.flows = dict(lately)
        return s
