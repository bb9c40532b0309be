"""What all batches of one gateway have in common: the broker and the store, the clock, threads for the store, and room."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, TypeVarTuple

from fmplex_broker.packages.files import FileStore
from fmplex_broker.streams.batch_list import BatchList
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.batches.gates import Gates

WINDOW_LINES, WINDOW_BYTES = (
    256,
    16 << 20,
)  # of one batch: its lines that are with workers, and rows that are not recorded yet
WINDOW_INPUTS = 1024  # a line may have many
MOST_LINES, MOST_BYTES = 4096, 64 << 20  # of all batches of one gateway
_THREADS = 8

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Clock:
    """The server's time, as it was told last, in seconds since 1970: gateways may have others."""

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def set(self, now: float) -> None:
        """Take the server's time."""
        self._ahead = now - time.monotonic()

    def now(self) -> float:
        """Return the server's time."""
        return time.monotonic() + self._ahead


class Room:
    """How much all batches of a gateway hold at once. Each may have a window of its own, a smaller one if there are many."""

    def __init__(self) -> None:
        self.batches = 0
        self.nbytes = 0

    @property
    def lines(self) -> int:
        """How many lines of one batch may be with workers."""
        return max(1, min(WINDOW_LINES, MOST_LINES // max(self.batches, 1)))

    @property
    def full(self) -> bool:
        """True if all of them hold as many bytes as they may."""
        return self.nbytes >= MOST_BYTES


class Disk:
    """Threads for what the store does, which may all wait for one that does not answer: those of the event loop must not."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="batches")
        self._computing = asyncio.Lock()

    async def run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run something that blocks on a thread; return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def compute(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run something that computes for a while, one at a time: the event loop must get its turns."""
        async with self._computing:
            return await self.run(work, *args)

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Desk:
    """What the batches of a gateway work with. `turn`: whoever writes a row holds it, so that not all of those whose answers came
    together write theirs before anybody else is served; `lines`: recorded, by outcome."""

    queue: QueueClient
    batches: BatchList
    files: FileList
    store: FileStore
    clock: Clock = field(default_factory=Clock)
    room: Room = field(default_factory=Room)
    gates: Gates = field(default_factory=Gates)
    disk: Disk = field(default_factory=Disk)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    lines: Counter[str] = field(default_factory=Counter)
