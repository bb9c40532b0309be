"""Who may hold memory between passes (keys and values) when there is too little for all. Pure: bytes and weights are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from fmplex_broker.wire.messages import OFFLINE, Flow

_PATIENCE = 64  # rows that are seated past one that waits, before its turn comes first


@dataclass(slots=True)
class _Seat:
    flow: Flow
    number: int  # in order of coming
    nbytes: int = 0
    wants: int = 0  # in all, if more
    leaving: bool = False
    passed: int = 0

    @property
    def offline(self) -> bool:
        return self.flow.cls == OFFLINE


class Turn(NamedTuple):
    """Rows that have what they asked for now; and rows that must leave, each of which is told once."""

    granted: list[str]
    leaving: list[str]


class KvAdmission:
    """`total` bytes for the rows of all flows: offline ones have what interactive ones leave, and within a class it is max-min by
    weight.

    A row that asks gets what is free and, if that does not do, what offline rows hold, or flows that have more per weight than
    its own would have then: the one with the most gives up its newest row first. So who has few or small rows need not wait for
    who has many, and no row leaves for one that could then be made to leave for it. A row that grows goes before those that are
    new; if nobody has more than its own flow, the newest rows of that leave for it, or it leaves itself for the older ones: the
    oldest row of a flow that holds the most goes on in any case.
    """

    def __init__(self, total: int, weights: Mapping[str, float]) -> None:
        self._total = total
        self._weights = weights
        self._seats: dict[str, _Seat] = {}
        self._held: dict[Flow, int] = {}
        self._used = 0
        self._wanting: set[str] = set()
        self._numbers = 0

    @property
    def used(self) -> int:
        """Bytes that rows may hold now."""
        return self._used

    @property
    def held(self) -> dict[str, int]:
        """The same by vFM."""
        out: dict[str, int] = {}
        for flow, nbytes in self._held.items():
            out[flow.vfm] = out.get(flow.vfm, 0) + nbytes
        return out

    @property
    def waiting(self) -> list[Flow]:
        """Flows of the rows that have no seat yet, one each."""
        return [seat.flow for key in self._wanting if not (seat := self._seats[key]).nbytes]

    def has(self, key: str, nbytes: int) -> bool:
        """Whether a row holds that much, and may keep it."""
        seat = self._seats.get(key)
        return seat is not None and seat.nbytes >= nbytes and not seat.leaving

    def ask(self, key: str, flow: Flow, nbytes: int) -> None:
        """A row, new or seated, needs so many bytes in all; the next turns tell whether it has them."""
        seat = self._seats.get(key)
        if seat is None:
            self._numbers += 1
            seat = self._seats[key] = _Seat(flow, self._numbers)
        seat.wants = nbytes
        self._wanting.add(key)

    def leave(self, key: str) -> None:
        """It has ended or was cancelled, or holds nothing any more; to go on, it asks again."""
        seat = self._seats.pop(key, None)
        if seat is not None:
            self._wanting.discard(key)
            self._add(seat, -seat.nbytes)

    def turn(self) -> Turn:
        """What is decided now. Call it after asking and after leaving."""
        turn = Turn([], [])
        line = [(self._order(self._seats[key]), key) for key in self._wanting]
        heapify(line)
        blocked: _Seat | None = None
        while line:
            order, key = heappop(line)
            seat = self._seats[key]
            if (now := self._order(seat)) > order:  # another row of its flow has just been seated
                heappush(line, (now, key))
                continue
            extra = max(seat.wants - seat.nbytes, 0)
            if blocked is None and extra > self._total - self._used:
                turn.leaving.extend(self._make_room(key, seat, extra))
                blocked = seat
            elif blocked is None or self._may_pass(seat, extra, blocked):
                self._grant(key, seat, extra)
                turn.granted.append(key)
            elif order[1] and order[2] and order[3] >= self._share(blocked.flow):
                break  # and those behind have no less
        return turn

    def _grant(self, key: str, seat: _Seat, extra: int) -> None:
        self._wanting.remove(key)
        if not seat.nbytes:
            for other in (self._seats[k] for k in self._wanting):
                other.passed += other.number < seat.number and other.offline == seat.offline
        self._add(seat, extra)

    def _order(self, seat: _Seat) -> tuple[bool, bool, bool, float, int]:
        share = self._share(seat.flow, seat.wants - seat.nbytes)
        return seat.offline, not seat.nbytes, seat.passed < _PATIENCE, share, seat.number

    def _may_pass(self, seat: _Seat, extra: int, blocked: _Seat) -> bool:
        """What gets free is gathered for the first in line: it must not go to whoever asks for less, time and again. But flows
        that stay below what the first one's flow has already need not wait for it."""
        fits = extra <= self._total - self._used
        return fits and seat.offline == blocked.offline and self._share(seat.flow, extra) < self._share(blocked.flow)

    def _share(self, flow: Flow, extra: int = 0) -> float:
        return (self._held.get(flow, 0) + extra) / self._weights.get(flow.vfm, 1.0)

    def _add(self, seat: _Seat, nbytes: int) -> None:
        seat.nbytes += nbytes
        self._used += nbytes
        self._held[seat.flow] = self._held.get(seat.flow, 0) + nbytes
        if not self._held[seat.flow]:
            del self._held[seat.flow]

    def _make_room(self, key: str, seat: _Seat, extra: int) -> list[str]:
        """Rows that leave so that a row can have `extra` bytes; none if that would not do, or if those that leave already do."""
        coming = self._total - self._used + sum(s.nbytes for s in self._seats.values() if s.leaving)
        if coming >= extra:
            return []
        rows = {k: s for k, s in self._seats.items() if s.nbytes and not s.leaving}
        out = self._from_others(seat, extra, extra - coming, rows)
        coming += sum(self._seats[k].nbytes for k in out)
        if coming < extra and seat.nbytes:
            out += self._from_its_own(key, seat, extra - coming, {k: s for k, s in rows.items() if k not in out})
            out = [key] if key in out else out
        elif coming < extra:
            return []
        for victim in out:
            self._seats[victim].leaving = True
        return out

    def _from_others(self, seat: _Seat, extra: int, missing: int, rows: dict[str, _Seat]) -> list[str]:
        """Rows of flows that come after this one or are richer than it would be, up to so many bytes."""
        share = self._share(seat.flow, extra)
        held = dict(self._held)
        for other in self._seats.values():
            held[other.flow] = held.get(other.flow, 0) - (other.nbytes if other.leaving else 0)
        left = dict(rows)

        def rank(item: tuple[str, _Seat]) -> tuple[bool, float, int]:
            flow = item[1].flow
            return item[1].offline, held[flow] / self._weights.get(flow.vfm, 1.0), item[1].number

        out: list[str] = []
        while missing > 0:
            richer = [
                (k, s)
                for k, s in left.items()
                if s.flow != seat.flow
                and s.offline >= seat.offline
                and (s.offline > seat.offline or rank((k, s))[1] > share)
            ]
            if not richer:
                break
            victim, gives = max(richer, key=rank)
            del left[victim]
            held[gives.flow] -= gives.nbytes
            missing -= gives.nbytes
            out.append(victim)
        return out

    def _from_its_own(self, key: str, seat: _Seat, missing: int, rows: dict[str, _Seat]) -> list[str]:
        """Its flow holds the most: the newer rows of that give way to the older ones, itself last."""
        out: list[str] = []
        for victim, gives in sorted(rows.items(), key=lambda row: -row[1].number):
            if missing > 0 and gives.flow == seat.flow and gives.number >= seat.number:
                missing -= gives.nbytes
                out.append(victim)
        return out
