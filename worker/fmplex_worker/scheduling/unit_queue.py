"""Whose training unit runs next. Pure: `now` in monotonic seconds."""

from __future__ import annotations

from collections import Counter

from .cost import CostModel
from .drr import DeficitRoundRobin
from .items import INTERACTIVE, Flow, Item, Plan, Room

_FULL = 256  # units of the first one that was offered; others in proportion
_STALE_S = 10.0
_UNKNOWN_S = 0.01  # how long the first unit of a kind is taken to need
_YOUNG = 10  # units of a kind after which the cost model tells outliers by itself
_SLOWER = 2.0  # times what was expected: what a unit counts for at most until then
_ONE = Room(1 << 40, 1)


class UnitQueue:
    """Units of several trainings, one of each at a time, shared by weight: deficit round robin with a cost model of its own, for
    passes cost otherwise. Each unit runs alone.

    How long units take is learnt for each kind. One of the first that was held up would keep all others from running: it counts
    for twice what was expected at most. If none has run for ten seconds, perhaps because the last ones were slow, the prediction
    is halved every ten seconds: else nothing would ever put it right.
    """

    def __init__(self) -> None:
        self._cost = CostModel(_FULL)
        self._drr = DeficitRoundRobin(self._cost, _FULL, trickle=0.0)
        self._kinds: dict[str, CostModel] = {}
        self._first: dict[str, float] = {}  # seconds a unit of cost of the first one of each kind
        self._seen: Counter[str] = Counter()
        self._kind_of: dict[str, str] = {}
        self._scale = 0.0
        self._ran = 0.0
        self._plan: Plan | None = None

    def add(self, key: str, weight: float) -> None:
        """Add a training; until it is removed more units of it are to be expected."""
        self._drr.set_weight(key, weight)
        self._drr.expect(_flow(key), True)

    def remove(self, key: str) -> None:
        """Remove a training, with its unit if one waits."""
        self.withdraw(key)
        self._drr.forget(key)

    def withdraw(self, key: str) -> None:
        """Take back the unit of a training, if one waits, at no charge."""
        self._drr.remove(key)
        self._kind_of.pop(key, None)
        if self.front == key and self._plan is not None:
            self._drr.charge(self._plan, self._plan.seconds)
            self._drr.owe(_flow(key), -self._plan.seconds)
            self._plan = None

    def offer(self, key: str, kind: str, cost: float, now: float) -> None:
        """Let the next unit of a training wait for its turn; `cost` as in `TrainingUnit`."""
        self._scale = self._scale or _FULL / max(cost, 1.0)
        self._ran = self._ran or now
        self._kind_of[key] = kind
        units = max(1, round(cost * self._scale))
        self._drr.add(Item(key, _flow(key), "encode", units, alone=True))

    @property
    def front(self) -> str | None:
        """The training whose unit has been picked to run next; None: there is none."""
        return self._plan.items[0].key if self._plan else None

    def predict(self, now: float) -> float:
        """Predict how long the next unit takes, in seconds."""
        assert self._plan is not None
        model = self._kinds.get(self._kind)
        if model is None:
            return _UNKNOWN_S
        age = max(0.0, now - self._ran - _STALE_S)
        return float(model.predict(self._plan.units) * 0.5 ** (age / _STALE_S))

    def charge(self, seconds: float, now: float) -> float:
        """Charge the unit that has just run; return how long it was expected to take. Then another one may be picked."""
        plan = self._plan
        assert plan is not None
        predicted = self.predict(now)
        self._learn(self._kind, plan.units, seconds)
        self._drr.charge(plan, seconds)
        self._plan, self._ran = None, now
        return predicted

    def _learn(self, kind: str, units: int, seconds: float) -> None:
        if kind not in self._first:  # it pays for lazy initialisation too
            self._first[kind] = seconds / units
            return
        model = self._kinds.setdefault(kind, CostModel(_FULL))
        if self._seen[kind] < _YOUNG:
            seconds = min(seconds, _SLOWER * model.predict(units) if self._seen[kind] else self._first[kind] * units)
        self._seen[kind] += 1
        model.observe(units, 0, 0, seconds)

    def pick(self, now: float) -> str | None:
        """Choose whose unit runs next, if that is not chosen yet; return its training, as `front`."""
        if self._plan is None:
            self._plan = self._drr.plan(now, _ONE)
        return self.front

    @property
    def _kind(self) -> str:
        assert self._plan is not None
        return self._kind_of[self._plan.items[0].key]


def _flow(key: str) -> Flow:
    """Return the flow of a training. It has one of its own: two trainings of one vFM have a weight each."""
    return Flow(key, INTERACTIVE)
