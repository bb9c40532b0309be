"""How the passes of a worker get on: the running one, and the last one. Pure: `now` is passed in (monotonic seconds)."""

from __future__ import annotations


class PassProgress:
    """`due`: when the pass behind the running one will be made; `last_s`: how long the last pass took, in seconds."""

    def __init__(self) -> None:
        self.due = 0.0
        self.last_s = 0.0
        self._ended = float("-inf")
        self._running = ("", 0, 0.0, 0.0)  # class, units, since, expected seconds

    def begin(self, cls: str, units: int, expected_s: float, due: float, now: float) -> None:
        """Note that a pass begins to run; the one behind it will be made when it is `due`."""
        self.due = due
        self._running = (cls, units, now, expected_s)

    def end(self, seconds: float, now: float) -> None:
        """Note that the running pass has ended, after so many seconds."""
        self.last_s = seconds
        self._ended = now
        self._running = ("", 0, 0.0, 0.0)

    def done_units(self, cls: str, now: float) -> float:
        """Estimate how many units of the running pass are done, if it is of this class."""
        running, units, since, expected = self._running
        return units * min(1.0, (now - since) / expected) if running == cls and expected > 0 else 0.0

    def ended_within(self, seconds: float, now: float) -> bool:
        """Tell whether a pass has ended within the last so many seconds."""
        return now - self._ended < seconds

    @property
    def expected_s(self) -> float:
        """How long the running pass is expected to take, or else the last one took."""
        return self._running[3] or self.last_s
