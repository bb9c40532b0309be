"""Load for the benchmarks: jobs at times fixed beforehand, and as many as the fleet can settle.

Latency counts from the time a job was due, not from when the client came to send it, so that a fleet that stalls the
client does not look fast (coordinated omission).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fmplex import AsyncClient

_LEAD_S = 0.05
_ON_S, _PEAK = 0.5, 3.0  # a burst: its mean length, and its rate over the mean rate


class Arrival(NamedTuple):
    """A job due `at` seconds after the beginning."""

    at: float
    task: int
    text: str


def poisson(rate: float, seconds: float, tasks: int, texts: Sequence[str], seed: int) -> list[Arrival]:
    """Draw Poisson arrivals of `rate` jobs a second, each of a random task with a random text."""
    rng = np.random.default_rng(seed)
    return _jobs(_times(rng, rate, seconds), tasks, texts, rng)


def bursty(rate: float, seconds: float, tasks: int, texts: Sequence[str], seed: int) -> list[Arrival]:
    """Draw `rate` jobs a second on average, in bursts: Poisson arrivals of three times the rate for 0.5 s on average, then none
    for 1 s (both exponential). Bursts and pauses are scaled so that a third of the time is burst: every run offers its rate."""
    rng = np.random.default_rng(seed)
    count = max(1, round(seconds / (_ON_S * _PEAK)))
    on, off = rng.exponential(size=count), rng.exponential(size=count + 1)
    on, off = on * (seconds / _PEAK / on.sum()), off * (seconds * (1 - 1 / _PEAK) / off.sum())
    ends = np.cumsum(on)  # of the bursts, on a clock that stands still in the pauses
    times = _times(rng, rate * _PEAK, float(ends[-1]))
    return _jobs(times + np.cumsum(off)[np.searchsorted(ends[:-1], times, side="right")], tasks, texts, rng)


def _times(rng: np.random.Generator, rate: float, seconds: float) -> np.ndarray:
    times = np.cumsum(rng.exponential(1 / rate, int(2 * rate * seconds) + 100))
    return times[times < seconds]


def _jobs(times: np.ndarray, tasks: int, texts: Sequence[str], rng: np.random.Generator) -> list[Arrival]:
    which, what = rng.integers(0, tasks, len(times)), rng.integers(0, len(texts), len(times))
    return [Arrival(float(t), int(task), texts[i]) for t, task, i in zip(times, which, what, strict=True)]


async def latencies(client: AsyncClient, vfms: Sequence[str], arrivals: Sequence[Arrival]) -> list[float]:
    """Send every arrival when it is due, whatever became of those before. Returns seconds from due to reply, in order."""
    begun = time.perf_counter() + _LEAD_S

    async def one(arrival: Arrival) -> float:
        await client.infer(vfms[arrival.task], arrival.text)
        return time.perf_counter() - begun - arrival.at

    running = []
    for arrival in arrivals:
        early = begun + arrival.at - time.perf_counter()
        if early > 0:
            await asyncio.sleep(early)
        running.append(asyncio.create_task(one(arrival)))
    return list(await asyncio.gather(*running))


def summary(key: str, waits: Sequence[float], warm_up: float) -> dict[str, float]:
    """Name mean, p50 and p99 of latencies, in seconds, the first part of them (`warm_up`) left out: queues are still filling."""
    kept = waits[int(warm_up * len(waits)) :]
    return {
        f"{key}_mean_s": statistics.fmean(kept),
        f"{key}_p50_s": float(np.percentile(kept, 50)),
        f"{key}_p99_s": float(np.percentile(kept, 99)),
    }


async def saturated(client: AsyncClient, vfms: Sequence[str], texts: Sequence[str], jobs: int) -> float:
    """Return settled jobs a second when all of them, the same number for every task, wait from the beginning."""
    begun = time.perf_counter()
    await asyncio.gather(*(client.infer(vfms[i % len(vfms)], texts[i % len(texts)]) for i in range(jobs)))
    return jobs / (time.perf_counter() - begun)
