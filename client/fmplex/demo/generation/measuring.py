"""Measuring what sharing one decoder gives: the same texts together against one after the other, and memory against copies."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fmplex.aio import AsyncClient
from fmplex.demo.generation.answers import chat_input
from fmplex.demo.generation.voices import VOICES
from fmplex.demo.memory import memory_figures
from fmplex_broker.wire.stats import WorkerStats

TOKENS = 64  # of every text, whatever it says: equal work
_FEWEST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class GenerationSharing:
    """Median tokens per second of the same texts, generated in both ways in turn. `texts`: how many at once."""

    together: float
    in_turn: float
    texts: int

    @property
    def ratio(self) -> float:
        """Rate together, as a multiple of the rate in turn."""
        return self.together / self.in_turn


async def measure_sharing(client: AsyncClient, prompts: Sequence[str], seconds: float) -> GenerationSharing:
    """Measure a text for every vFM and prompt, all at once, so that they share passes, and one after the other, as when every
    model has the machine for itself in turn. Interleaved, for about so many seconds."""
    together: list[float] = []
    in_turn: list[float] = []
    calls = [(voice.name, prompt) for voice in VOICES for prompt in prompts]
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(in_turn) < _FEWEST_ROUNDS:
        begun = time.monotonic()
        tokens = sum(await asyncio.gather(*(_generate(client, *call) for call in calls)))
        together.append(tokens / (time.monotonic() - begun))
        begun = time.monotonic()
        tokens = sum([await _generate(client, *call) for call in calls])
        in_turn.append(tokens / (time.monotonic() - begun))
    return GenerationSharing(statistics.median(together), statistics.median(in_turn), len(calls))


async def _generate(client: AsyncClient, vfm: str, prompt: str) -> int:
    result = await client.infer(vfm, chat_input(prompt), max_tokens=TOKENS, ignore_eos=True, temperature=0.0)
    tokens: int = result.output["completion_tokens"]
    return tokens


def memory(one: WorkerStats, every: WorkerStats) -> dict[str, int]:
    """Return the figures of `memory_figures`, from reports with the bare backbone and with all vFMs, and the adapters' bytes."""
    return {"adapters": every.residency.device_bytes, **memory_figures(one, every, len(VOICES))}
