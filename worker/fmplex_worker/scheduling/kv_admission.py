"""Admission to KV memory: which sequences may hold memory between passes when there is too little for all. Pure: bytes and
weights are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from fmplex_broker.wire.messages import OFFLINE, Flow

_PATIENCE = 64  # sequences that are admitted past one that waits, before its turn comes first


@dataclass(slots=True)
class _Reservation:
    flow: Flow
    number: int  # in order of coming
    nbytes: int = 0
    wants: int = 0  # in all, if more
    leaving: bool = False
    passed: int = 0

    @property
    def offline(self) -> bool:
        return self.flow.cls == OFFLINE


class Decision(NamedTuple):
    """Keys of the sequences that have what they requested now; and of those that must leave, each of which is told once."""

    granted: list[str]
    to_evict: list[str]


class KvAdmission:
    """`total` bytes for the sequences of all flows, by `weights` of the vFMs (1 if missing): offline ones have what interactive
    ones leave, and within a class it is max-min by weight.

    A sequence that requests gets what is free and, if that does not do, what offline sequences hold, or flows that have more
    per weight than its own would have then: the one with the most gives up its newest sequence first. So who has few or small
    sequences need not wait for who has many, and no sequence leaves for one that could then be made to leave for it. A sequence
    that grows goes before those that are new; if nobody has more than its own flow, the newest sequences of that leave for it,
    or it leaves itself for the older ones: the oldest sequence of a flow that holds the most goes on in any case.
    """

    def __init__(self, total: int, weights: Mapping[str, float]) -> None:
        self._total = total
        self._weights = weights
        self._reservations: dict[str, _Reservation] = {}
        self._held: dict[Flow, int] = {}
        self._used = 0
        self._wanting: set[str] = set()
        self._numbers = 0

    @property
    def used_bytes(self) -> int:
        """Bytes that sequences may hold now."""
        return self._used

    @property
    def held_bytes(self) -> dict[Flow, int]:
        """Bytes that sequences may hold now, by flow."""
        return dict(self._held)

    @property
    def waiting_flows(self) -> list[Flow]:
        """Flows of the sequences that hold nothing yet, one each."""
        waiting = (self._reservations[key] for key in self._wanting)
        return [reservation.flow for reservation in waiting if not reservation.nbytes]

    def holds(self, key: str, nbytes: int) -> bool:
        """Tell whether a sequence holds that much, and may keep it."""
        reservation = self._reservations.get(key)
        return reservation is not None and reservation.nbytes >= nbytes and not reservation.leaving

    def request(self, key: str, flow: Flow, nbytes: int) -> None:
        """Request `nbytes` in all for a sequence, new or admitted; the next decisions tell whether it has them."""
        reservation = self._reservations.get(key)
        if reservation is None:
            self._numbers += 1
            reservation = self._reservations[key] = _Reservation(flow, self._numbers)
        reservation.wants = nbytes
        self._wanting.add(key)

    def release(self, key: str) -> None:
        """Release what a sequence holds: it has ended, was cancelled or evicted. To go on, it requests again."""
        reservation = self._reservations.pop(key, None)
        if reservation is not None:
            self._wanting.discard(key)
            self._add(reservation, -reservation.nbytes)

    def decide(self) -> Decision:
        """Decide who gets memory now and who must leave. Call it after every request and release."""
        decision = Decision([], [])
        line = [(self._order(self._reservations[key]), key) for key in self._wanting]
        heapify(line)
        blocked: _Reservation | None = None
        while line:
            order, key = heappop(line)
            reservation = self._reservations[key]
            if (now := self._order(reservation)) > order:  # another sequence of its flow has just been admitted
                heappush(line, (now, key))
                continue
            extra = max(reservation.wants - reservation.nbytes, 0)
            if blocked is None and extra > self._total - self._used:
                decision.to_evict.extend(self._make_room(key, reservation, extra))
                blocked = reservation
            elif blocked is None or self._may_pass(reservation, extra, blocked):
                self._grant(key, reservation, extra)
                decision.granted.append(key)
            elif order[1] and order[2] and order[3] >= self._share(blocked.flow):
                break  # and those behind have no less
        return decision

    def _grant(self, key: str, reservation: _Reservation, extra: int) -> None:
        self._wanting.remove(key)
        if not reservation.nbytes:
            for other in (self._reservations[k] for k in self._wanting):
                other.passed += other.number < reservation.number and other.offline == reservation.offline
        self._add(reservation, extra)

    def _order(self, reservation: _Reservation) -> tuple[bool, bool, bool, float, int]:
        share = self._share(reservation.flow, reservation.wants - reservation.nbytes)
        is_new, is_patient = not reservation.nbytes, reservation.passed < _PATIENCE
        return reservation.offline, is_new, is_patient, share, reservation.number

    def _may_pass(self, reservation: _Reservation, extra: int, blocked: _Reservation) -> bool:
        """Tell whether one may be served before the first in line, for which what gets free is gathered: it must not go to
        whoever asks for less, time and again. But flows that stay below what the first one's flow has already need not wait."""
        if extra > self._total - self._used or reservation.offline != blocked.offline:
            return False
        return self._share(reservation.flow, extra) < self._share(blocked.flow)

    def _share(self, flow: Flow, extra: int = 0) -> float:
        return (self._held.get(flow, 0) + extra) / self._weights.get(flow.vfm, 1.0)

    def _add(self, reservation: _Reservation, nbytes: int) -> None:
        reservation.nbytes += nbytes
        self._used += nbytes
        self._held[reservation.flow] = self._held.get(reservation.flow, 0) + nbytes
        if not self._held[reservation.flow]:
            del self._held[reservation.flow]

    def _make_room(self, key: str, reservation: _Reservation, extra: int) -> list[str]:
        """Choose the sequences that leave so that one can have `extra` bytes; none if that would not do, or if those that leave
        already do."""
        coming = self._total - self._used + sum(r.nbytes for r in self._reservations.values() if r.leaving)
        if coming >= extra:
            return []
        staying = {k: r for k, r in self._reservations.items() if r.nbytes and not r.leaving}
        out = self._from_others(reservation, extra, extra - coming, staying)
        coming += sum(self._reservations[k].nbytes for k in out)
        if coming < extra and reservation.nbytes:
            rest = {k: r for k, r in staying.items() if k not in out}
            out += self._from_its_own(reservation, extra - coming, rest)
            out = [key] if key in out else out
        elif coming < extra:
            return []
        for victim in out:
            self._reservations[victim].leaving = True
        return out

    def _from_others(
        self, reservation: _Reservation, extra: int, missing: int, staying: dict[str, _Reservation]
    ) -> list[str]:
        """Choose sequences of flows that come after this one or are richer than it would be, up to `missing` bytes."""
        share = self._share(reservation.flow, extra)
        held = dict(self._held)
        for other in self._reservations.values():
            held[other.flow] = held.get(other.flow, 0) - (other.nbytes if other.leaving else 0)
        left = dict(staying)

        def rank(item: tuple[str, _Reservation]) -> tuple[bool, float, int]:
            flow = item[1].flow
            return item[1].offline, held[flow] / self._weights.get(flow.vfm, 1.0), item[1].number

        out: list[str] = []
        while missing > 0:
            richer = [
                (k, r)
                for k, r in left.items()
                if r.flow != reservation.flow
                and r.offline >= reservation.offline
                and (r.offline > reservation.offline or rank((k, r))[1] > share)
            ]
            if not richer:
                break
            victim, gives = max(richer, key=rank)
            del left[victim]
            held[gives.flow] -= gives.nbytes
            missing -= gives.nbytes
            out.append(victim)
        return out

    def _from_its_own(self, reservation: _Reservation, missing: int, staying: dict[str, _Reservation]) -> list[str]:
        """Choose among the sequences of its own flow, which holds the most: the newer give way to the older, itself last."""
        out: list[str] = []
        for victim, gives in sorted(staying.items(), key=lambda entry: -entry[1].number):
            if missing > 0 and gives.flow == reservation.flow and gives.number >= reservation.number:
                missing -= gives.nbytes
                out.append(victim)
        return out
