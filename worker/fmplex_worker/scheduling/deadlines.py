"""Deadlines, and what they may do to a pass: be served early, and make it shorter where that costs nobody anything."""

from __future__ import annotations

from dataclasses import dataclass

from .cost import CostModel

_SPAN_S = 1.0  # arrivals are counted over spans of it


class Arrivals:
    """The rate at which units have come lately."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._units = 0
        self._last = 0.0

    def record(self, units: int) -> None:
        """Count the units of an item that has come."""
        self._units += units

    def rate(self, now: float) -> float:
        """Return units a second of the last whole span or of the present one, whichever is higher; `now` in seconds."""
        if self._begun is None:
            self._begun = now
        span = now - self._begun
        present = self._units / min(max(span, _SPAN_S), 2 * _SPAN_S)  # after a rest all of it may have come just now
        if span >= _SPAN_S:
            self._begun, self._units, self._last = now, 0, present
        return max(present, self._last)


@dataclass(frozen=True, slots=True)
class Moment:
    """The moment at which a pass is made. `begin`: when it will begin, seconds; `budget`: units of a full pass; `arrivals`: units
    a second that have to be kept up with."""

    begin: float
    cost: CostModel
    budget: int
    arrivals: float

    @property
    def horizon(self) -> float:
        """The time in seconds before which one has to be in this pass: whoever is left out of it will be late."""
        return self.begin + 2 * self.cost.predict_pass(self.budget)

    def shortened(self, units: int, deadline: float) -> int:
        """Return the units of the pass that ends by `deadline`; `units` itself if that is in time, or if no pass of at least half
        a budget is, or if shorter passes would not keep up with what arrives: then everybody would be late."""
        left = deadline - self.begin
        fewer = self.cost.units_within(left, units)
        takes = self.cost.predict_pass(fewer)
        if fewer == units or fewer < self.budget / 2 or takes > left or fewer <= self.arrivals * takes:
            return units
        return fewer
