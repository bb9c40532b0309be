"""How the passes of a worker get on: the running one, and the last one. Pure: `now` is passed in (monotonic seconds)."""

from __future__ import annotations

from collections.abc import Mapping


class PassProgress:
    """`due`: when the pass behind the running one will be made; `last_s`: how long the last pass took, in seconds."""

    def __init__(self) -> None:
        self.due = 0.0
        self.last_s = 0.0
        self._ended = float("-inf")
        self._units: Mapping[str, int] = {}  # of the running one, by class
        self._began = self._expected_s = 0.0

    def begin(self, units: Mapping[str, int], expected_s: float, due: float, now: float) -> None:
        """Note that a pass of so many units of each class begins to run; the one behind it will be made when it is `due`."""
        self.due = due
        self._units, self._began, self._expected_s = units, now, expected_s

    def end(self, seconds: float, now: float) -> None:
        """Note that the running pass has ended, after so many seconds."""
        self.last_s = seconds
        self._ended = now
        self._units, self._expected_s = {}, 0.0

    def done_units(self, cls: str, now: float) -> float:
        """Estimate how many units of a class the running pass has done."""
        expected = self._expected_s
        return self._units.get(cls, 0) * min(1.0, (now - self._began) / expected) if expected > 0 else 0.0

    def ended_within(self, seconds: float, now: float) -> bool:
        """Tell whether a pass has ended within the last so many seconds."""
        return now - self._ended < seconds

    @property
    def expected_s(self) -> float:
        """How long the running pass is expected to take, or else the last one took."""
        return self._expected_s or self.last_s
