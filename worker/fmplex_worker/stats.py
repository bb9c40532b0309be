"""What this worker counts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

import psutil

from fmplex_broker.stats import VfmStats, WorkerStats, bucket_of
from fmplex_worker.engines.protocol import EngineInfo
from fmplex_worker.scheduling import Share


class Meter:
    """Counters of one worker process; plain additions on the event loop."""

    def __init__(self, engine: EngineInfo) -> None:
        self._process = psutil.Process()
        self._started = time.monotonic()
        self.stats = WorkerStats("", engine.name, engine.device, os.getpid(), socket.gethostname())
        self.stats.backbone_bytes = engine.memory_bytes

    def vfm(self, name: str) -> VfmStats:
        found = self.stats.vfms.get(name)
        if found is None:
            found = self.stats.vfms[name] = VfmStats()
        return found

    def answered(self, vfm: str, *, failed: bool, latency_ms: float) -> None:
        stats = self.vfm(vfm)
        if failed:
            stats.failed += 1
        else:
            stats.done += 1
        stats.latency_s += latency_ms / 1000
        stats.latency[bucket_of(latency_ms)] += 1

    def ran(self, vfm_units: dict[str, int], seconds: float) -> None:
        """One pass has landed."""
        self.stats.passes += 1
        self.stats.busy_s += seconds
        for name, units in vfm_units.items():
            self.vfm(name).units += units
            self.stats.pass_units += units

    def memory(self) -> None:
        """Read the process's memory (milliseconds: call it off the loop)."""
        # Files of weights are mapped and shared, so resident memory would count them for every process.
        with suppress(psutil.Error):  # where the system forbids to look, the last figure stands
            self.stats.memory_bytes = int(self._process.memory_full_info().uss)
        if self.stats.device.startswith("cuda"):
            import torch

            self.stats.device_bytes = int(torch.cuda.memory_allocated(self.stats.device))

    def snapshot(
        self, worker: str, *, held: int, loaded: Mapping[str, int], shares: dict[str, Share], cost_error: float
    ) -> WorkerStats:
        """The counters as they stand, with what the scheduler knows of each vFM. `loaded`: bytes of each resident version."""
        s = self.stats
        s.worker, s.held, s.cost_error = worker, held, cost_error
        s.resident, s.versions_bytes = len(loaded), sum(loaded.values())
        s.uptime_s = time.monotonic() - self._started
        for gone in s.vfms.keys() - shares.keys():
            del s.vfms[gone]  # removed: its counters have been seen
        for name, share in shares.items():
            if name not in s.vfms and not share.charged:
                continue  # ten thousand that never ran here need no word
            vfm = self.vfm(name)
            vfm.weight, vfm.charged_s, vfm.deficit_s = share.weight, share.charged, share.deficit
        return s
