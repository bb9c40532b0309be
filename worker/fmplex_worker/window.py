"""The window: the jobs this worker holds, from claim to settlement. Bookkeeping only."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fmplex_broker.messages import CLASSES, INTERACTIVE
from fmplex_broker.streams.consumer import CLAIM_ROOM, Claimed
from fmplex_worker.engines.protocol import Prepared

_SMOOTH = 0.05


@dataclass(slots=True)
class Held:
    """A job in hand. `parked` while its version is brought here; `pinned` while it keeps that version here; `prepared` once
    intake has accepted it; `running` from plan to landing; `done` once it has a reply. In hand `since` (monotonic seconds);
    it waited `load_ms` for its version."""

    job: Claimed
    since: float = field(default_factory=time.monotonic)
    load_ms: float = 0.0
    parked: bool = False
    pinned: bool = False
    prepared: Prepared | None = None
    running: bool = False
    done: bool = False

    @property
    def key(self) -> str:
        return f"{self.job.address} {self.job.entry}"

    @property
    def units(self) -> int:
        return self.prepared.units if self.prepared is not None else self.job.units


class Window:
    """Holds `passes` passes of interactive work and one of offline work, so that the next pass is always at hand and yet
    nobody's turn is decided here long before it comes."""

    def __init__(self, pass_units: int, passes: int, unpin: Callable[[str], None]) -> None:
        """`unpin(version)` is called once for each pinned job, when it ends."""
        self._unpin = unpin
        self._passes = {cls: passes if cls == INTERACTIVE else 1 for cls in CLASSES}
        self.pass_units = pass_units
        self._open = dict.fromkeys(CLASSES, 0)  # units not done yet
        self._typical = dict.fromkeys(CLASSES, 16.0)  # units a job
        self._held: dict[str, Held] = {}
        self._deadlines: list[tuple[int, str]] = []
        self.waiting = dict.fromkeys(CLASSES, 0)  # units prepared, not running
        self.running = 0  # jobs
        self.pass_s = 0.0  # what the last pass took
        self._ended = float("-inf")  # when
        self.due = 0.0  # when the next one will be made (monotonic seconds)
        self._pass = ("", 0, 0.0, 0.0)  # that runs: class, units, since when, for how long it is expected to
        self.parked = 0  # jobs that take no room yet
        self.arrived = asyncio.Event()  # something became runnable
        self.freed = asyncio.Event()  # there may be room again

    @property
    def waiting_units(self) -> int:
        return sum(self.waiting.values())

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    def get(self, key: str) -> Held | None:
        return self._held.get(key)

    def room(self) -> dict[str, int]:
        """Jobs to claim, by class; empty when there is no room. At most a few rooms of unsettled replies may wait."""
        if len(self._held) >= 8 * CLAIM_ROOM:
            return {}
        left = {cls: self.pass_units * self._passes[cls] - self._open[cls] + self._consumed(cls) for cls in CLASSES}
        # One job always fits where there is any room: texts may be longer than the whole window.
        return {cls: min(max(1, int(n / self._typical[cls])), CLAIM_ROOM) for cls, n in left.items() if n > 0}

    def _consumed(self, cls: str) -> float:
        """Units of the running pass that may be thought of as done. Their room is given up as it runs and not when it ends:
        who has just come would find the window full, and miss the pass behind it."""
        running, units, since, expected = self._pass
        return units * min(1.0, (time.monotonic() - since) / expected) if running == cls and expected > 0 else 0.0

    def begun(self, cls: str, units: int, expected_s: float, due: float) -> None:
        """A pass has begun to run; the one behind it will be made when it is `due`."""
        self.due = due
        self._pass = (cls, units, time.monotonic(), expected_s)

    def ended(self, seconds: float) -> None:
        """It has ended."""
        self.pass_s = seconds
        self._ended = time.monotonic()
        self._pass = ("", 0, 0.0, 0.0)

    def ran_within(self, seconds: float) -> bool:
        """A pass has ended within the last so many seconds."""
        return time.monotonic() - self._ended < seconds

    @property
    def run_s(self) -> float:
        """How long the running pass is expected to take, or else the last one took."""
        return self._pass[3] or self.pass_s

    def add(self, job: Claimed) -> Held:
        held = Held(job)
        self._held[held.key] = held
        self._open[job.flow.cls] += held.units
        heapq.heappush(self._deadlines, (job.deadline_ms, held.key))
        return held

    def park(self, held: Held) -> None:
        """It takes no room until `unpark`: what waits for its version must not keep out what could run."""
        held.parked = True
        self.parked += 1
        self._open[held.job.flow.cls] -= held.units

    def unpark(self, held: Held) -> None:
        held.parked = False
        self.parked -= 1
        self._open[held.job.flow.cls] += held.units

    def ready(self, held: Held, prepared: Prepared) -> None:
        """Intake has accepted it: from its estimated to its real units."""
        self._open[held.job.flow.cls] += prepared.units - held.units
        held.prepared = prepared
        cls = held.job.flow.cls
        self._typical[cls] += (prepared.units - self._typical[cls]) * _SMOOTH
        self.waiting[cls] += prepared.units
        self.arrived.set()

    def start(self, key: str) -> Held:
        held = self._held[key]
        held.running = True
        self.running += 1
        self.waiting[held.job.flow.cls] -= held.units
        return held

    def finish(self, held: Held) -> None:
        """It has a reply: its room is free, but it stays known until the broker has settled it."""
        held.done = True
        self.running -= held.running
        if held.parked:
            self.unpark(held)
        self._open[held.job.flow.cls] -= held.units
        if held.pinned:
            held.pinned = False
            self._unpin(held.job.digest)
        if held.prepared is not None and not held.running:
            self.waiting[held.job.flow.cls] -= held.units
        self.freed.set()

    def drop(self, held: Held) -> None:
        """It is settled, or not ours any more."""
        if len(self._deadlines) > 2 * len(self._held) + 1024:
            # Most have been answered long before their deadlines: keep only what can still expire.
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._held]
            heapq.heapify(self._deadlines)
        if self._held.pop(held.key, None) is not None and not held.done:
            self.finish(held)
        self.freed.set()

    def expired(self, now_ms: float, ahead_ms: float = 0.0) -> list[Held]:
        """Jobs that have not started and whose deadline is not after `now_ms`, of interactive ones not after `ahead_ms` from
        then; each is reported once."""
        out, later = [], []
        while self._deadlines and self._deadlines[0][0] <= now_ms + ahead_ms:
            entry = heapq.heappop(self._deadlines)
            held = self._held.get(entry[1])
            if held is None or held.running or held.done:
                continue
            if held.job.flow.cls == INTERACTIVE or entry[0] <= now_ms:
                out.append(held)
            else:
                later.append(entry)
        for entry in later:
            heapq.heappush(self._deadlines, entry)
        return out
