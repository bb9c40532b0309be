"""What was lent to training: who has waited for it, and what it has had of the time that interactive work leaves. Pure: times in
monotonic seconds."""

from __future__ import annotations

from collections import deque

_KEPT = 4096  # loans, far more than a request waits for
_MOST_OWED_S = 1.0  # what was missed for longer is not made up for


class LentTime:
    """When the device was lent, and how much of it requests have still to catch up with."""

    def __init__(self) -> None:
        # Begin, end, and what was lent before since there last was nothing in hand: who comes then waits behind those who waited.
        self._loans: deque[tuple[float, float, float]] = deque(maxlen=_KEPT)
        self._behind = 0.0

    def add(self, begun: float, ended: float) -> None:
        """Note a loan that has ended."""
        self._loans.append((begun, ended, self._behind))
        self._behind += ended - begun

    def caught_up(self, now: float) -> None:
        """Note that no request waits: whoever comes from now on is late for no loan before."""
        if self._behind:
            self._behind = 0.0
            self._loans.append((now, now, 0.0))

    def within(self, begun: float, ended: float) -> float:
        """Return how many seconds of a span the device was lent, and before it while those were in hand who came before."""
        seconds = 0.0
        for start, end, behind in reversed(self._loans):
            if end <= begun:
                return seconds + behind + end - start
            seconds += max(0.0, min(end, ended) - max(start, begun))
        return seconds


class Leftover:
    """Shares what interactive work leaves between training and offline jobs, where both want it, and keeps the trickles of both:
    training's also where requests without targets leave nothing. Time that one of them did not want is nobody's to save.

    `share`: training's part of what is left; `trickle`: its part of device time in any case, as `offline_trickle` is that of
    offline jobs. So neither of them gets all that is left.
    """

    def __init__(self, share: float, trickle: float, offline_trickle: float) -> None:
        self._share = min(max(share, trickle), 1 - offline_trickle)
        self._trickle, self._offline_trickle = trickle, offline_trickle
        self._ahead = 0.0  # seconds that training has had more than its share
        self._owed = 0.0  # seconds that it may have in place of requests that wait
        self._behind = self._offline_behind = (
            0.0  # seconds that training, and offline jobs, have had less than their trickles
        )

    def note_units(self, seconds: float, *, offline_waits: bool, owed: bool) -> None:
        """Note that training has had the device; `owed`: in place of somebody who waited."""
        self._owed = self._owed - seconds if owed else min(self._owed, max(0.0, self._owed - seconds))
        self._ahead = _within(self._ahead, (1 - self._share) * seconds) if offline_waits else 0.0
        self._behind = _within(self._behind, -(1 - self._trickle) * seconds)
        self._wait_offline(seconds, offline_waits)

    def note_offline(self, seconds: float) -> None:
        """Note an offline pass that ran while units waited."""
        self._ahead = _within(self._ahead, -self._share * seconds)
        self._behind = _within(self._behind, self._trickle * seconds)
        self._offline_behind = _within(self._offline_behind, -(1 - self._offline_trickle) * seconds)

    def note_interactive(self, seconds: float, *, offline_waits: bool) -> None:
        """Note an interactive pass that ran while units waited."""
        self._owed = min(self._owed + seconds * self._trickle / (1 - self._trickle), _MOST_OWED_S)
        self._behind = _within(self._behind, self._trickle * seconds)
        self._wait_offline(seconds, offline_waits)

    def _wait_offline(self, seconds: float, waits: bool) -> None:
        behind = _within(self._offline_behind, self._offline_trickle * seconds)
        self._offline_behind = behind if waits else 0.0

    def rest(self) -> None:
        """Note that no units wait."""
        self._ahead = self._owed = self._behind = self._offline_behind = 0.0

    def is_turn(self, *, offline_waits: bool) -> bool:
        """Tell whether training goes before offline jobs now: it has had no more than its share, and they have had their trickle;
        or it has not had its own."""
        return not offline_waits or self._behind > 0 or (self._ahead <= 0 and self._offline_behind <= 0)

    @property
    def owed(self) -> bool:
        """Whether training has had less than its trickle."""
        return self._owed > 0


def _within(seconds: float, more: float) -> float:
    """Add to what somebody is ahead or behind, but go no further than a second from 0, or than one step leads."""
    most = max(_MOST_OWED_S, abs(more), abs(seconds))
    return max(-most, min(seconds + more, most))
