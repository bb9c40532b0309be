"""Traffic through the gateway: mixed over all vFMs, and bursts sent together against one task at a time."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fmplex.aio import AsyncClient
from fmplex_broker.errors import FmplexError


@dataclass(slots=True)
class Traffic:
    """Results of the mixed traffic. `latencies`: seconds as the callers saw them, by vFM; `failures`: messages."""

    latencies: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def jobs(self) -> int:
        """Number of jobs that were answered."""
        return sum(map(len, self.latencies.values()))


async def mixed(
    client: AsyncClient, inputs: dict[str, list[Any]], seconds: float, callers: int, seed: int = 0
) -> Traffic:
    """Send mixed traffic for so many seconds: `callers` callers, each sending one text after the other to a random vFM."""
    traffic = Traffic({name: [] for name in inputs})
    rng = random.Random(seed)
    start = time.monotonic()

    async def caller() -> None:
        while time.monotonic() - start < seconds:
            name = rng.choice(list(inputs))
            began = time.monotonic()
            try:
                await client.infer(name, rng.choice(inputs[name]))
            except FmplexError as e:
                traffic.failures.append(f"{name}: {e.code}: {e}")
            else:
                traffic.latencies[name].append(time.monotonic() - began)

    await asyncio.gather(*(caller() for _ in range(callers)))
    traffic.seconds = time.monotonic() - start
    return traffic


@dataclass(frozen=True, slots=True)
class Sharing:
    """Median jobs per second of the same bursts, sent in both ways in turn."""

    together: float
    one_at_a_time: float

    @property
    def ratio(self) -> float:
        """Rate together, as a multiple of the rate one at a time."""
        return self.together / self.one_at_a_time


async def measure_sharing(client: AsyncClient, inputs: dict[str, list[Any]], rounds: int, seed: int = 1) -> Sharing:
    """Measure the same bursts (two texts for every vFM) sent all at once, so that they share passes, and task after task, as when
    every pass serves one task only. Interleaved; medians over rounds."""
    rng = random.Random(seed)
    together: list[float] = []
    in_turn: list[float] = []
    for _ in range(rounds):
        burst = {name: rng.sample(texts, 2) for name, texts in inputs.items()}
        jobs = sum(map(len, burst.values()))
        for rates, all_at_once in ((together, True), (in_turn, False)):
            start = time.monotonic()
            await _send(client, burst, all_at_once)
            rates.append(jobs / (time.monotonic() - start))
    return Sharing(statistics.median(together), statistics.median(in_turn))


async def _send(client: AsyncClient, burst: dict[str, list[Any]], all_at_once: bool) -> None:
    calls = [client.infer(name, texts) for name, texts in burst.items()]
    if all_at_once:
        await asyncio.gather(*calls)
    else:
        for call in calls:
            await call


def quantile(values: Sequence[float], q: float) -> float:
    """Return a quantile by nearest rank; 0 for no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
