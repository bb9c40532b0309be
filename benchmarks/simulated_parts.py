"""What stands in for the device, its passes and trainings, and for what a simulated worker has around it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from benchmarks.virtual_time import Device
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import Flow
from fmplex_broker.wire.streaming import Delta
from fmplex_worker.protocol import Capacity, OnePass, Piece, Progress
from fmplex_worker.training import MemoryNeed, RunProgress, Unit

FORWARD, BACKWARD = 0.021, 0.025  # seconds of a unit of training


class Shape(NamedTuple):
    """A device and its passes: seconds of a pass (`alpha`) and of each of its units (`beta`), and the units of a full one."""

    alpha: float
    beta: float
    units: int

    def pass_s(self, units: int) -> float:
        """Return the seconds of a pass."""
        return self.alpha + self.beta * units

    def slower(self, share: float) -> Shape:
        """Return the same device where only a `share` of it runs passes."""
        return Shape(self.alpha / share, self.beta / share, self.units)


ENCODER = Shape(0.016, 0.00048, 175)  # a full pass takes 100 ms
JOB = 16  # units of a job
FULL_RATE = ENCODER.units / ENCODER.pass_s(ENCODER.units) / JOB  # jobs a second


@dataclass(frozen=True, slots=True)
class Encode(OnePass):
    """A prepared job that is done in one pass."""

    units: int
    digest: str = "v"
    adapter: int = 0
    head: int = 0


class FakeRun:
    """A training of endless, or so many, micro-batches of two layers: units as a real one has them."""

    def __init__(self, device: Device, name: str, batches: float = float("inf"), scale: float = 1.0) -> None:
        self._device = device
        self._name = name
        self._scale = scale
        self._left = batches
        self._kinds: list[tuple[Any, int, float]] = []
        self.ran: list[str] = []
        self.fails_at = -1
        self.due = False
        self.snapshots = 0

    def next(self) -> Unit | None:
        """Return the next unit."""
        if not self._kinds:
            if self._left <= 0:
                return None
            self._left -= 1
            self._kinds = [
                ("step", 0, 0.001), ("backward", 128, BACKWARD), ("backward", 128, BACKWARD), ("loss", 128, 0.002),
                ("forward", 128, FORWARD), ("forward", 128, FORWARD),
            ]  # fmt: skip
        kind, tokens, seconds = self._kinds.pop()
        return Unit(kind, tokens, 1e4 * seconds, lambda: self._run(kind, seconds * self._scale))

    def _run(self, kind: str, seconds: float) -> None:
        self._device.spend(seconds, self._name)
        self.ran.append(kind)
        if len(self.ran) == self.fails_at:
            raise ValueError("it diverged")

    @property
    def progress(self) -> RunProgress:
        """Steps that were done."""
        return RunProgress(self.ran.count("step"), 1000)

    @property
    def needs(self) -> MemoryNeed:
        """Return what it needs of memory: nothing."""
        return MemoryNeed(0, 0)

    @property
    def holds(self) -> int:
        """Return what it has of it."""
        return 0

    def limit(self, nbytes: int) -> None:
        """Take that it may have so much."""

    @property
    def checkpoint_due(self) -> bool:
        """Whether the test wants one."""
        return self.due

    def snapshot(self) -> Any:
        """Count it."""
        self.due = False
        self.snapshots += 1
        return SimpleNamespace(step=self.snapshots)

    def package(self) -> dict[str, bytes]:
        """Return no files."""
        return {}


class Text:
    """A job that generates `tokens` after a prompt, which is taken in by pieces of `chunk` tokens (0: whole)."""

    kind, digest, adapter, head = "generate", "v", 0, 0

    def __init__(self, prompt: int, tokens: int, chunk: int = 0) -> None:
        self.units = self._prompt = prompt
        self._tokens = tokens
        self._chunk = chunk or prompt
        self.memory = prompt + tokens

    def pieces(self) -> list[Piece]:
        """Return those of the prompt, or the next token."""
        if not self._prompt:
            return [Piece("decode", 1, 1)]
        starts = range(0, self._prompt, self._chunk)
        sizes = [min(self._chunk, self._prompt - start) for start in starts]
        return [Piece("prefill", size, size) for size in sizes]

    def ran(self, tokens: int) -> Any:
        """Take part of the prompt, or a token; with the last one it is done."""
        if self._prompt > tokens:
            self._prompt -= tokens
            return Progress(None)
        self._prompt = 0
        self._tokens -= 1
        return Progress(Delta(0, "", tokens=1)) if self._tokens else "done"


class FakeConsumer:
    """A broker that is told whom to blame: `delay` seconds late, with an `error`, or to say that the lease is `lost`."""

    worker = "w"

    def __init__(self) -> None:
        self.marks: list[tuple[list[str], str]] = []
        self.delay = 0.0
        self.error: Exception | None = None
        self.lost = False

    async def mark(self, jobs: Iterable[Claimed], *, preparing: bool, tuning: str = "") -> bool:
        """Keep what is marked."""
        self.marks.append(([job.job for job in jobs], tuning))
        await asyncio.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return not self.lost


class FakeEngine:
    """An engine with all the memory there may be."""

    capacity = Capacity(1 << 20)

    def drop(self, prepared: Any) -> None:
        """Do nothing."""


class NoGuard:
    """Nobody gives up."""

    def answer_hopeless(self, busy_s: float) -> None:
        """Do nothing."""


class NoMeter:
    """Nothing is counted."""

    def ran(self, units: dict[Flow, int], seconds: float) -> None:
        """Do nothing."""
