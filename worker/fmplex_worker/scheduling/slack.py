"""How long the device may be lent to training now, so that every request keeps its target. Pure: `now` in monotonic seconds.

The method follows FlexLLM (arXiv 2402.18789), with one difference: what counts is every request and every gap between two
tokens, not the mean of a request, which hides a stall.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from math import ceil, inf
from typing import NamedTuple

_HISTORY_S = 10.0  # what is older says nothing: by time, or one burst would count for ever once it is quiet
_PERCENTILE = 0.95
_CUT, _RECOVERY = 0.7, 0.02  # of the spend when too many were late; and a second, whatever happens
_CUT_AGAIN_S = 1.0  # many of those who are late come of one burst, and came before the last cut
_MAY_BE_LATE = 0.01
_JUDGED_AT, _JUDGED_OVER = 25, 200  # requests that waited for a unit


class History:
    """Values of the last ten seconds."""

    def __init__(self) -> None:
        self._by_time: deque[tuple[float, float]] = deque()
        self._by_size: list[float] = []

    def add(self, value: float, now: float) -> None:
        """Note a value."""
        self._expire(now)
        self._by_time.append((now, value))
        insort(self._by_size, value)

    def high(self, now: float) -> float:
        """Return the 95th percentile; 0 if nothing was noted."""
        self._expire(now)
        sizes = self._by_size
        return sizes[ceil(_PERCENTILE * len(sizes)) - 1] if sizes else 0.0

    def _expire(self, now: float) -> None:
        while self._by_time and now - self._by_time[0][0] > _HISTORY_S:
            _, value = self._by_time.popleft()
            del self._by_size[bisect_left(self._by_size, value)]


class Spend:
    """The part of a target that training may use up: `most`, or less for a while if that has made requests late.

    It is cut, at most once a second, when more than one in a hundred were late that would have been in time without units, and
    grows back with time: were it fed by requests only, it would never recover where they have become few.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self._part = most
        self._at = -inf  # as of when
        self._heard = -inf
        self._touched = self._late = 0.0
        self._cut_at = -inf

    def now(self, now: float) -> float:
        """Return the part that may be used now. Ten seconds without a request restore all of it."""
        if now - self._heard > _HISTORY_S:
            self._part = self.most
        elif now > self._at:
            self._part = min(self.most, self._part + _RECOVERY * (now - self._at))
        self._at = max(now, self._at)
        return self._part

    def heard(self, now: float) -> None:
        """Note that there are requests."""
        self.now(now)
        self._heard = now

    def judge(self, late: bool, now: float) -> None:
        """Take in a request that has waited for a unit; `late`: past its target, and in time but for what it has waited so."""
        self.heard(now)
        self._touched += 1
        self._late += late
        if self._touched < _JUDGED_AT:
            return
        if self._late > _MAY_BE_LATE * self._touched:
            if now - self._cut_at >= _CUT_AGAIN_S:
                self._part, self._cut_at = _CUT * self._part, now
            self._touched = self._late = 0.0
        elif self._touched >= _JUDGED_OVER:
            self._touched, self._late = self._touched / 2, self._late / 2


class Due(NamedTuple):
    """A request in hand: it is due `at` (seconds), by a target of `target` seconds; `token`: the next one of a text."""

    at: float
    target: float
    token: bool = False


class Demand(NamedTuple):
    """Interactive work as it stands. `dues`: of the requests in hand that have targets; `backlog`: seconds of passes that wait;
    `expected`: the tightest target that may come into force at any moment, in seconds (0: no vFM in use has one);
    `untargeted`: whether there is a request in hand that has no target."""

    dues: Iterable[Due] = ()
    backlog: float = 0.0
    expected: float = 0.0
    untargeted: bool = False


class Loan(NamedTuple):
    """The device, lent to training for `seconds`. `strict`: there are targets, so nothing may run that takes longer; else one
    unit may run to its end. `owed`: somebody waits meanwhile, so it is paid from the trickle."""

    seconds: float
    strict: bool
    owed: bool = False


class Slack:
    """Slack of the requests of one worker. `spend`: the part of targets from enqueue on that may be used, `spend_tokens`: of
    those from token to token; `unit_s`: how long the device may be lent where there are no targets."""

    def __init__(self, spend: float, spend_tokens: float, unit_s: float) -> None:
        self.spend = Spend(spend)
        self.spend_tokens = Spend(spend_tokens)
        self.unit_s = unit_s
        self._passes = History()
        self._overruns = History()

    def note_pass(self, seconds: float, predicted: float, now: float) -> None:
        """Note how long an interactive pass took: who comes next has to wait for one like it. Offline ones say nothing of that,
        and may be longer than a target."""
        self._passes.add(seconds, now)
        self._overruns.add(max(0.0, seconds - predicted), now)
        for spend in (self.spend, self.spend_tokens):
            spend.heard(now)

    def note_unit(self, seconds: float, predicted: float, now: float) -> None:
        """Note how long a unit took."""
        self._overruns.add(max(0.0, seconds - predicted), now)

    def loan(self, now: float, demand: Demand, *, owed: bool = False) -> Loan:
        """Return how long the device may be lent from now on; 0: not at all.

        It is what is left until the first due, less the part of its target that is not spent, what runs before it (the backlog,
        or a pass as they have been) and how far predictions have been off; and no more than that for who may come at any moment.
        Who has no target does not wait for more than one unit, and only if training is `owed` its trickle.
        """
        margin, a_pass = self._overruns.high(now), self._passes.high(now)
        ahead = max(demand.backlog, a_pass)
        seconds, strict = inf, False
        if demand.expected > 0:
            seconds, strict = self.spend.now(now) * demand.expected - a_pass - margin, True
        for due in demand.dues:
            spend = self.spend_tokens if due.token else self.spend
            reserved = (1 - spend.now(now)) * due.target
            seconds, strict = min(seconds, due.at - now - reserved - ahead - margin), True
            if seconds <= 0:
                break
        if demand.untargeted and not owed:
            seconds = 0.0
        elif demand.untargeted or not strict:
            seconds = min(seconds, self.unit_s)
        return Loan(max(seconds, 0.0), strict, demand.untargeted)
