"""The window: the jobs this worker holds, from claim to settlement. Bookkeeping only."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fmplex_broker.errors import FmplexError
from fmplex_broker.streams.claims import CLAIM_ROOM, Claimed
from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, Flow
from fmplex_worker.protocol import Piece, Prepared

_SMOOTH = 0.05
_UNWANTED = 4096


@dataclass(slots=True)
class ActiveJob:
    """A job in hand, `since` when (monotonic seconds).

    `parked` while its version is brought here, for which it waited `load_ms`; `pinned` while it keeps that version here;
    `prepared` once intake has accepted it. `pieces`: of it that wait for a pass, by their keys; `running`: how many are in one,
    from plan to landing. `aside` while it waits for memory before its first pass; `resident` from then on, if it takes
    several; `leaving` if it must give up its memory when it lands; `dropped` if nobody waits for it any more; `done` once it
    has a reply. It waited `wait_ms` for the first of its passes; they took `run_ms` and were charged `spent` units; its last
    token came at `token_ms` (server time), and is told at once if it `streams`.
    """

    job: Claimed
    since: float = field(default_factory=time.monotonic)
    load_ms: float = 0.0
    parked: bool = False
    pinned: bool = False
    prepared: Prepared | None = None
    pieces: dict[str, Piece] = field(default_factory=dict)
    running: int = 0
    resident: bool = False
    aside: bool = False
    leaving: bool = False
    dropped: FmplexError | None = None
    done: bool = False
    wait_ms: float | None = None
    run_ms: float = 0.0
    spent: float = 0.0
    streams: bool = False
    token_ms: float = 0.0
    units: int = 0  # estimated, until it is prepared
    numbers: int = 0  # of its pieces so far

    def __post_init__(self) -> None:
        self.units = self.job.units

    @property
    def key(self) -> str:
        return f"{self.job.address} {self.job.entry}"


class JobTable:
    """Holds `passes` passes of interactive work and one of offline work, so that the next pass is always at hand and yet
    nobody's turn is decided here long before it comes."""

    def __init__(self, pass_units: int, passes: int, unpin: Callable[[str], None]) -> None:
        """`unpin(version)` is called once for each pinned job, when it ends."""
        self._unpin = unpin
        self._passes = {cls: passes if cls == INTERACTIVE else 1 for cls in CLASSES}
        self.pass_units = pass_units
        self._open: dict[Flow, int] = {}  # units not begun, or not done if one pass does it
        self._sums = dict.fromkeys(CLASSES, 0)
        self.overflowing: set[Flow] = set()  # of which enough is here: long prompts that one claim brought
        self._typical = dict.fromkeys(CLASSES, 16.0)  # units a job
        self._held: dict[str, ActiveJob] = {}
        self._pieces: dict[str, ActiveJob] = {}  # key of a piece that waits -> its job
        self._deadlines: list[tuple[int, str]] = []
        self._unwanted: OrderedDict[str, None] = OrderedDict()  # jobs that were cancelled and are not here
        self.waiting = dict.fromkeys(CLASSES, 0)  # units of the pieces that wait for a pass
        self.running = 0  # jobs
        self.pass_s = 0.0  # what the last pass took
        self._ended = float("-inf")  # when
        self.due = 0.0  # when the next one will be made (monotonic seconds)
        self._pass = ("", 0, 0.0, 0.0)  # that runs: class, units, since when, for how long it is expected to
        self.parked = 0  # jobs that take no room yet
        self._unsettled = 0  # jobs that have a reply, of which the broker has yet to hear
        self.arrived = asyncio.Event()  # something became runnable
        self.freed = asyncio.Event()  # there may be room again

    @property
    def waiting_units(self) -> int:
        return sum(self.waiting.values())

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[ActiveJob]:
        return iter(self._held.values())

    def get(self, key: str) -> ActiveJob | None:
        return self._held.get(key)

    def room(self) -> dict[str, int]:
        """Jobs to claim, by class; empty when there is no room. A few rooms of unsettled replies may wait at most; and more of
        jobs that wait for memory or hold it: a flow with one that waits is not claimed from, but there may be many flows."""
        if self._unsettled >= 8 * CLAIM_ROOM or len(self._held) >= 64 * CLAIM_ROOM:
            return {}
        left = {cls: self.pass_units * self._passes[cls] - self._taken(cls) + self._consumed(cls) for cls in CLASSES}
        # One job always fits where there is any room: texts may be longer than the whole window.
        return {cls: min(max(1, int(n / self._typical[cls])), CLAIM_ROOM) for cls, n in left.items() if n > 0}

    def _taken(self, cls: str) -> int:
        """What leaves no room. Flows of which one claim brought more than the window holds leave a pass's worth to the others."""
        if cls != INTERACTIVE or not self.overflowing:
            return self._sums[cls]
        large = sum(self._open[flow] for flow in self.overflowing)
        return self._sums[cls] - large + min(large, self.pass_units * (self._passes[cls] - 1))

    def _count(self, held: ActiveJob, units: int) -> None:
        flow = held.job.flow
        self._sums[flow.cls] += units
        left = self._open[flow] = self._open.get(flow, 0) + units
        if flow.cls == INTERACTIVE:
            whole = self.pass_units * self._passes[INTERACTIVE]
            (self.overflowing.add if left > whole else self.overflowing.discard)(flow)
        if not left:
            del self._open[flow]

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

    def add(self, job: Claimed) -> ActiveJob:
        held = ActiveJob(job)
        self._held[held.key] = held
        self._count(held, held.units)
        heapq.heappush(self._deadlines, (job.deadline_ms, held.key))
        return held

    def forgo(self, key: str) -> None:
        """Nobody waits for this job any more. It is not here, but may be on its way: the claim's reply is still to come, or it is
        in the hands of a worker that will die."""
        self._unwanted[key] = None
        if len(self._unwanted) > _UNWANTED:
            self._unwanted.popitem(last=False)

    def unwanted(self, held: ActiveJob) -> bool:
        return held.key in self._unwanted

    def park(self, held: ActiveJob) -> None:
        """It takes no room until `unpark`: what waits for its version must not keep out what could run."""
        held.parked = True
        self.parked += 1
        self._count(held, -held.units)

    def set_aside(self, held: ActiveJob) -> None:
        """It waits for memory, and takes no room until `take_back`: what could run must not be kept out."""
        held.aside = True
        self._count(held, -held.units)

    def take_back(self, held: ActiveJob) -> None:
        held.aside = False
        self._count(held, held.units)

    def unpark(self, held: ActiveJob) -> None:
        held.parked = False
        self.parked -= 1
        self._count(held, held.units)

    def ready(self, held: ActiveJob, prepared: Prepared) -> None:
        """Intake has accepted it: from its estimated to its real units."""
        cls, units = held.job.flow.cls, prepared.units
        self._count(held, units - held.units)
        held.prepared, held.units = prepared, units
        self._typical[cls] += (units - self._typical[cls]) * _SMOOTH

    def queue(self, held: ActiveJob, piece: Piece) -> str:
        """A piece of it waits for a pass, under this key."""
        held.numbers += 1
        key = f"{held.key} {held.numbers}"
        held.pieces[key] = piece
        self._pieces[key] = held
        self.waiting[held.job.flow.cls] += piece.units
        self.arrived.set()
        return key

    def withdraw(self, held: ActiveJob) -> list[str]:
        """No piece of it waits any more; the keys of those that did."""
        keys = list(held.pieces)
        for key in keys:
            self._take(key)
        return keys

    def start(self, key: str) -> tuple[ActiveJob, Piece]:
        """A piece goes into a pass."""
        held, piece = self._take(key)
        held.running += 1
        self.running += held.running == 1
        return held, piece

    def _take(self, key: str) -> tuple[ActiveJob, Piece]:
        held = self._pieces.pop(key)
        piece = held.pieces.pop(key)
        self.waiting[held.job.flow.cls] -= piece.units
        return held, piece

    def landed(self, held: ActiveJob) -> None:
        """The pass of one of its pieces has ended."""
        held.running -= 1
        self.running -= held.running == 0

    def stay(self, held: ActiveJob) -> None:
        """It goes on: what it takes from now on is no room for others' first passes."""
        if not held.resident:
            held.resident = True
            self._count(held, -held.units)
            self.freed.set()

    def finish(self, held: ActiveJob) -> None:
        """It has a reply: its room is free, but it stays known until the broker has settled it."""
        held.done = True
        self._unsettled += 1
        if held.parked:
            self.unpark(held)
        if held.aside:
            self.take_back(held)
        if not held.resident:
            self._count(held, -held.units)
        if held.pinned:
            held.pinned = False
            self._unpin(held.job.digest)
        self.withdraw(held)
        self.freed.set()

    def drop(self, held: ActiveJob) -> None:
        """It is settled, or not ours any more."""
        if len(self._deadlines) > 2 * len(self._held) + 1024:
            # Most have been answered long before their deadlines: keep only what can still expire.
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._held]
            heapq.heapify(self._deadlines)
        if self._held.pop(held.key, None) is not None:
            if not held.done:
                self.finish(held)
            self._unsettled -= 1
        self.freed.set()

    def expired(self, now_ms: float, ahead_ms: float = 0.0) -> list[ActiveJob]:
        """Jobs whose deadline is not after `now_ms`, of interactive ones that have not begun not after `ahead_ms` from then; none
        that is in a pass. Each is reported once."""
        out, later = [], []
        while self._deadlines and self._deadlines[0][0] <= now_ms + ahead_ms:
            entry = heapq.heappop(self._deadlines)
            held = self._held.get(entry[1])
            if held is None or held.done:
                continue
            ahead = held.job.flow.cls == INTERACTIVE and not held.resident
            if not held.running and (ahead or entry[0] <= now_ms):
                out.append(held)
            else:
                later.append(entry)
        for entry in later:
            heapq.heappush(self._deadlines, entry)
        return out
