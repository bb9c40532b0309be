"""Who may hold memory between passes (keys and values) when there is too little for all. Pure: bytes and weights are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_PATIENCE = 64  # rows that are seated past one that waits, before its turn comes first


@dataclass(slots=True)
class _Seat:
    vfm: str
    number: int  # in order of coming
    nbytes: int = 0
    wants: int = 0  # in all, if more
    leaving: bool = False
    passed: int = 0


class Turn(NamedTuple):
    """Rows that have what they asked for now; and rows that must leave, each of which is told once."""

    granted: list[str]
    leaving: list[str]


class Seats:
    """`total` bytes for the rows of all vFMs, max-min by weight.

    A row that asks gets what is free and, if that does not do, what vFMs hold that have more per weight than its own would have
    then: the one with the most gives up its newest row first. So who has few or small rows need not wait for who has many, and
    no row leaves for one that could then be made to leave for it. A row that grows goes before those that are new; if nobody has
    more than its own vFM, the newest rows of that leave for it, or it leaves itself for the older ones: the oldest row of a vFM
    that holds the most goes on in any case.
    """

    def __init__(self, total: int, weights: Mapping[str, float]) -> None:
        self._total = total
        self._weights = weights
        self._seats: dict[str, _Seat] = {}
        self._held: dict[str, int] = {}  # vFM -> bytes
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
        return dict(self._held)

    @property
    def waiting(self) -> list[str]:
        """vFMs of the rows that have no seat yet, one each."""
        return [seat.vfm for key in self._wanting if not (seat := self._seats[key]).nbytes]

    def ask(self, key: str, vfm: str, nbytes: int) -> None:
        """A row, new or seated, needs so many bytes in all; the next turns tell whether it has them."""
        seat = self._seats.get(key)
        if seat is None:
            self._numbers += 1
            seat = self._seats[key] = _Seat(vfm, self._numbers)
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
        while self._wanting:
            key = min(self._wanting, key=lambda k: self._order(self._seats[k]))
            seat = self._seats[key]
            extra = max(seat.wants - seat.nbytes, 0)
            if extra > self._total - self._used:
                # Who is behind it waits too: what gets free must not go to whoever asks for less, time and again.
                turn.leaving.extend(self._make_room(key, seat, extra))
                break
            self._wanting.remove(key)
            if not seat.nbytes:
                self._pass(seat)
            self._add(seat, extra)
            turn.granted.append(key)
        return turn

    def _order(self, seat: _Seat) -> tuple[bool, bool, float, int]:
        return not seat.nbytes, seat.passed < _PATIENCE, self._share(seat.vfm, seat.wants - seat.nbytes), seat.number

    def _pass(self, seated: _Seat) -> None:
        for key in self._wanting:
            waiting = self._seats[key]
            waiting.passed += waiting.number < seated.number

    def _share(self, vfm: str, extra: int = 0) -> float:
        return (self._held.get(vfm, 0) + extra) / self._weights.get(vfm, 1.0)

    def _add(self, seat: _Seat, nbytes: int) -> None:
        seat.nbytes += nbytes
        self._used += nbytes
        self._held[seat.vfm] = self._held.get(seat.vfm, 0) + nbytes
        if not self._held[seat.vfm]:
            del self._held[seat.vfm]

    def _make_room(self, key: str, seat: _Seat, extra: int) -> list[str]:
        """Rows that leave so that a row can have `extra` bytes; none if that would not do, or if those that leave already do."""
        coming = self._total - self._used + sum(s.nbytes for s in self._seats.values() if s.leaving)
        share = self._share(seat.vfm, extra)
        held = dict(self._held)
        rows = [(k, s) for k, s in self._seats.items() if s.nbytes and not s.leaving]
        for other in (s for s in self._seats.values() if s.leaving):
            held[other.vfm] -= other.nbytes
        out: list[str] = []
        while coming < extra:
            richer = [
                (k, s) for k, s in rows if held[s.vfm] / self._weights.get(s.vfm, 1.0) > share and s.vfm != seat.vfm
            ]
            if not richer:
                break
            victim, gives = max(
                richer, key=lambda row: (held[row[1].vfm] / self._weights.get(row[1].vfm, 1.0), row[1].number)
            )
            rows.remove((victim, gives))
            held[gives.vfm] -= gives.nbytes
            coming += gives.nbytes
            out.append(victim)
        if coming < extra and seat.nbytes:
            # Its own vFM holds the most: the newer rows of that give way to the older ones.
            for victim, gives in sorted(rows, key=lambda row: -row[1].number):
                if coming < extra and gives.vfm == seat.vfm and gives.number >= seat.number:
                    coming += gives.nbytes
                    out.append(victim)
                    if victim == key:
                        break
            out = [key] if key in out else out
        elif coming < extra:
            out = []
        for victim in out:
            self._seats[victim].leaving = True
        return out
