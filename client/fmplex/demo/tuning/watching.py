"""What happens meanwhile, on one clock: the neighbours' traffic, and the held-out score of the version that serves."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fmplex.aio import AsyncClient
from fmplex.demo.scoring import score
from fmplex.demo.tasks import DemoTask, Examples, as_input
from fmplex.demo.traffic import mixed, quantile
from fmplex_broker.errors import FmplexError

_CALLERS = 4
_LEAST, _MOST = 2.0, 40.0  # requests a second
_LEAST_MS, _STEP_MS = 100.0, 50.0  # of the target
_AT_ONCE, _PAUSE_S = 3, 0.05  # texts to score on, and between them: a careful reader, who makes no bursts


class Answer(NamedTuple):
    """A neighbour's request, sent `at` second and answered after `ms` milliseconds."""

    at: float
    vfm: str
    ms: float


class Scored(NamedTuple):
    """The score of a version on all held-out texts, as the gateway had answered them by second `at`."""

    at: float
    version: str
    value: float


class Deployed(NamedTuple):
    """A version that began to serve at second `at`: the state after `step`."""

    at: float
    version: str
    step: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the neighbours, all together: `requests` a second, each to be answered within `target_ms`."""

    requests: float
    target_ms: float


@dataclass(slots=True)
class Seen:
    """All that was seen; seconds count from `start` (monotonic). Training went on from `begun` to `ended`."""

    load: Load
    start: float = field(default_factory=time.monotonic)
    answers: list[Answer] = field(default_factory=list)
    scores: list[Scored] = field(default_factory=list)
    deployed: list[Deployed] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    begun: float = 0.0
    ended: float = 0.0

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start


async def gauge(client: AsyncClient, inputs: dict[str, list[Any]], seconds: float) -> Load:
    """Find out, in so many seconds, what this machine can do: a fifth of it is asked, with five times the time that it takes."""
    traffic = await mixed(client, inputs, seconds, _CALLERS)
    taken = [one for some in traffic.latencies.values() for one in some]
    target_ms = _STEP_MS * math.ceil(5000 * quantile(taken, 0.95) / _STEP_MS)
    return Load(min(_MOST, max(_LEAST, traffic.jobs / traffic.seconds / 5)), max(_LEAST_MS, target_ms))


async def ask_neighbours(
    client: AsyncClient, inputs: Mapping[str, Sequence[Any]], seen: Seen, stop: asyncio.Event
) -> None:
    """Send requests to random neighbours at random times, whether or not earlier ones are answered, until
    `stop`. Each counts from when it was due."""
    rng, names = random.Random(0), list(inputs)
    due = time.monotonic()

    async def ask(vfm: str, value: Any, since: float) -> None:
        try:
            await client.infer(vfm, value)
        except FmplexError as e:
            seen.failures.append(f"{vfm}: {e.code}: {e}")
        else:
            seen.answers.append(Answer(since - seen.start, vfm, 1000 * (time.monotonic() - since)))

    async with asyncio.TaskGroup() as group:
        while not stop.is_set():
            due += rng.expovariate(seen.load.requests)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            vfm = rng.choice(names)
            group.create_task(ask(vfm, rng.choice(inputs[vfm]), due))


async def keep_scoring(
    client: AsyncClient, task: DemoTask, examples: Examples, seen: Seen, stop: asyncio.Event
) -> None:
    """Score whatever version of a vFM serves, a few texts after the other through the gateway, again and again until `stop`."""
    inputs = [as_input(row) for row in examples.held_out]
    while not stop.is_set():
        version, outputs = "", list[Any]()
        while len(outputs) < len(inputs):
            try:
                results = await client.infer(task.name, inputs[len(outputs) : len(outputs) + _AT_ONCE])
            except FmplexError as e:
                seen.failures.append(f"{task.name}: {e.code}: {e}")
                return
            versions = {result.version for result in results} | ({version} if outputs else set())
            if len(versions) > 1:
                outputs.clear()  # another version serves: from the beginning
            else:
                outputs += [result.output for result in results]
                version = results[0].version
            await asyncio.sleep(_PAUSE_S)
        seen.scores.append(Scored(seen.now, version, score(task, examples, [], outputs).value))
