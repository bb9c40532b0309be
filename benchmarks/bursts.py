"""Latencies of a small task's jobs, and of a crawler's, in the crawler's burst: see `benchmarks.fairness`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_SLACK = 1.2


@dataclass(frozen=True)
class Phases:
    """Seconds of calm, burst, calm."""

    before: float
    burst: float
    after: float


class Sent(NamedTuple):
    """One job: when it was due, seconds from then to its reply, what its pass took, and its tokens."""

    due: float
    latency: float
    pass_s: float
    units: int


def figures(victim: Sequence[Sent], aggressor: Sequence[Sent], phases: Phases, solo_s: float) -> dict[str, float]:
    """Sum up what was due in the burst. `solo_s`: a pass of the victim's own; `bound_s`: that and two full passes, + 20 %."""
    begin, end = phases.before, phases.before + phases.burst
    waits = [sent.latency for sent in victim if begin <= sent.due < end]
    crowd = [sent for sent in aggressor if begin <= sent.due < end]
    full_s = statistics.median(sent.pass_s for sent in crowd)
    done = [sent.units for sent in (*victim, *aggressor) if begin <= sent.due + sent.latency < end]
    return {
        "victim_p99_s": float(np.percentile(waits, 99)),
        "victim_p50_s": float(np.percentile(waits, 50)),
        "victim_mean_s": statistics.fmean(waits),
        "aggressor_mean_s": statistics.fmean(sent.latency for sent in crowd),
        "tokens_per_s": sum(done) / phases.burst,
        "bound_s": _SLACK * (solo_s + 2 * full_s),
    }
