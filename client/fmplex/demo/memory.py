"""Memory of one shared backbone against copies of it, for both demos."""

from __future__ import annotations

from fmplex_broker.wire.stats import WorkerStats


def memory_figures(one: WorkerStats, every: WorkerStats, copies: int) -> dict[str, int]:
    """Return bytes of weights and of the process, shared and as `copies`, from a worker's reports with one vFM and with all.

    A copy of the backbone takes what the worker took with one vFM on it; adapters and heads count once either way.
    """
    versions = every.residency.device_bytes
    return {
        "weights_shared": every.backbone_bytes + versions,
        "weights_copies": copies * every.backbone_bytes + versions,
        "process_shared": every.memory_bytes,
        "process_copies": copies * one.memory_bytes,
    }
