"""How many layers make a unit: it must end soon, for requests may come, and may be as small as a layer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from fmplex_worker.training import Unit

UNIT_S = 0.02  # that a unit should take: longer ones fit into less of what requests leave, shorter ones cost more trips
MOST = 16  # layers of a unit
_NEW = 0.5  # weight of the last unit among those before it

Kind = Literal["forward", "backward", "check"]


class Pace:
    """Chooses how many layers the next unit of a training has, at most `most`, going by how long its last ones took. No bit of
    what is learnt depends on it. The first unit of a kind has one layer."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._seconds: dict[Kind, float] = {}  # that a cost of 1 has taken

    def layers(self, kind: Kind, cost: float) -> int:
        """Return how many layers a unit may have of which each costs so much."""
        took = self._seconds.get(kind)
        if took is None:
            return 1
        return max(1, min(self._most, int(UNIT_S / max(took * cost, 1e-9))))

    def unit(self, kind: Kind, tokens: int, cost: float, run: Callable[[], None]) -> Unit:
        """Make a unit that notes how long it takes."""

        def timed() -> None:
            begun = time.perf_counter()
            run()
            self._note(kind, (time.perf_counter() - begun) / max(cost, 1e-9))

        return Unit(kind, tokens, cost, timed)

    def _note(self, kind: Kind, seconds: float) -> None:
        before = self._seconds.get(kind, seconds)
        self._seconds[kind] = before + _NEW * (seconds - before)
