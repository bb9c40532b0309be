"""Lulls in interactive work: while one lasts, nobody waits for an offline pass."""

from __future__ import annotations

_SMOOTH = 0.1
_GAPS = 8.0  # of arrivals at random one gap in three thousand is so many times the mean
_LEAST_S, _MOST_S = 2.0, 60.0


class Lull:
    """Tells a lull from a gap between two interactive jobs: it is longer than eight usual gaps, than two seconds in any case, and
    never longer than a minute has to be. Before the first job there is one. Time in seconds."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._gap = 0.0  # mean of the recent ones

    def end(self, now: float) -> None:
        """Note that there is interactive work."""
        if self._last is not None:
            self._gap += (min(max(now - self._last, 0.0), _MOST_S) - self._gap) * _SMOOTH
        self._last = now

    def lasts(self, now: float) -> bool:
        """Tell whether there is a lull."""
        return self._last is None or now - self._last > min(max(_GAPS * self._gap, _LEAST_S), _MOST_S)
