"""What sharing one decoder gives: the same texts together against one after the other, and memory against copies."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fmplex.aio import AsyncClient
from fmplex.demo.generation.stage import chat
from fmplex.demo.generation.voices import VOICES
from fmplex_broker.wire.stats import WorkerStats

TOKENS = 64  # of every text, whatever it says: equal work
_FEWEST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class GenerationSharing:
    """Median tokens per second of the same texts, generated in both ways in turn. `rows`: texts at once."""

    together: float
    in_turn: float
    rows: int

    @property
    def ratio(self) -> float:
        return self.together / self.in_turn


async def together_or_in_turn(client: AsyncClient, prompts: Sequence[str], seconds: float) -> GenerationSharing:
    """A text for every vFM and prompt: all at once, so that they share passes; and one after the other, as when every model has
    the machine for itself in turn. Interleaved, for about so long."""
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
    result = await client.infer(vfm, chat(prompt), max_tokens=TOKENS, ignore_eos=True, temperature=0.0)
    tokens: int = result.output["completion_tokens"]
    return tokens


def memory(one: WorkerStats, every: WorkerStats) -> dict[str, int]:
    """Measured with the bare backbone and with all vFMs on the worker; N copies would be N times the first, and the adapters."""
    n = len(VOICES)
    adapters = every.residency.device_bytes
    return {
        "adapters": adapters,
        "weights_shared": every.backbone_bytes + adapters,
        "weights_copies": n * every.backbone_bytes + adapters,
        "process_shared": every.memory_bytes,
        "process_copies": n * one.memory_bytes,
    }
