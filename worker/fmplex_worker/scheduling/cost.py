"""The cost of a pass, learnt from the passes that ran, and who owes how much of it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Sequence
from math import isfinite
from statistics import median

from .items import Item

_FORGET = 0.99  # an observation's weight halves in about 70 passes like it
_PRIOR = (5e-3, 5e-3, 0.0, 0.0)  # before anything is measured a full pass takes 10 ms, half of them fixed
_TYPICAL_DISTINCT = 8.0  # keeps counts of segments and heads on the scale of the other features
_ANCHOR = 1e-3  # pull towards the last estimate, in passes: what the passes do not tell apart stays as it was
_WARM_UP = 8  # observations taken at face value
_FAR, _FAR_RELATIVE = 4.0, 0.25  # off by more than 4 usual errors and a quarter of the prediction: an outlier
_PERSISTS = 8  # outliers, net of ordinary passes, after which they are no outliers
_ALIKE = 1.5
_LEAST_SPEED = 0.01  # nothing becomes a hundred times faster
_SMOOTH = 0.05
_LEAST_PRICE = 1e-9  # seconds a unit: a price of zero would let a flow run for ever on no credit


class CostModel:
    """c = α + β·units + γ·(adapter segments) + δ·(heads), in seconds, every coefficient ≥ 0.

    Recursive least squares with directional forgetting (Kulhavý & Kárný, "Tracking of slowly varying
    parameters by directional forgetting", IFAC 1984): a pass displaces what earlier ones told of passes like
    it, so that under load, when every pass is full, what a small one costs is not forgotten. Kept as normal
    equations so that the coefficients can be held non-negative: four unknowns are solved afresh each pass,
    in tens of µs. `full_pass` is X*, the units over which the price of an item spreads α; the scheduler keeps
    it equal to its pass budget.
    Warm it with a short profile: a few `observe` calls over small and full passes.
    """

    def __init__(self, full_pass: int) -> None:
        if full_pass < 1:
            raise ValueError("a full pass has at least one unit")
        self.full_pass = full_pass
        self._scale = (1.0, float(full_pass), _TYPICAL_DISTINCT, _TYPICAL_DISTINCT)
        self._theta = list(_PRIOR)
        self._gram = [[0.0] * 4 for _ in range(4)]
        self._moment = [0.0] * 4
        self._seen = 0
        self._usual = 0.0  # mean absolute error, seconds
        self._error = 0.0
        self._outliers = 0
        self._off: deque[float] = deque(maxlen=_PERSISTS)  # how far the last ones were, measured ÷ predicted
        self._extras = 0.0  # what adapters and heads cost in recent passes, seconds a pass

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """(α, β, γ, δ) in seconds, seconds a unit, seconds a segment, seconds a head."""
        a, b, c, d = (theta / scale for theta, scale in zip(self._theta, self._scale, strict=True))
        return a, b, c, d

    @property
    def error(self) -> float:
        """Recent mean of |measured - predicted| ÷ predicted, outliers included (each counts 1 at most)."""
        return self._error

    def predict(self, units: int, segments: int = 0, heads: int = 0) -> float:
        """Predict the seconds that a pass of so many units, adapter segments and heads takes."""
        alpha, beta, gamma, delta = self.coefficients
        return alpha + beta * units + gamma * segments + delta * heads

    def price(self, units: int) -> float:
        """Price an item of so many units: ĉ, what it costs in a full pass, in seconds."""
        per_unit = self._theta[1] / self._scale[1] + self._theta[0] / self.full_pass
        return units * max(per_unit, _LEAST_PRICE)

    def predict_pass(self, units: int) -> float:
        """Predict the seconds of a pass of so many units, with as many segments and heads as passes have had lately."""
        return self.predict(units) + self._extras

    def units_within(self, seconds: float, most: int) -> int:
        """Return the units of the largest such pass expected to end within `seconds`, in 1 … `most`."""
        if self.predict_pass(most) <= seconds:
            return most
        alpha, beta, _, _ = self.coefficients
        return max(1, int((seconds - alpha - self._extras) / beta)) if beta > 0 else 1

    def observe(self, units: int, segments: int, heads: int, seconds: float) -> None:
        """Learn from one measured pass. Raises `ValueError` if its time is not finite."""
        if not (isfinite(seconds) and seconds >= 0):
            raise ValueError(f"a pass takes a finite time, not {seconds!r}")
        predicted = self.predict(units, segments, heads)
        miss = abs(seconds - predicted)
        relative = min(1.0, miss / max(predicted, _LEAST_PRICE))
        self._error += (relative - self._error) * (_SMOOTH if self._seen else 1.0)
        self._seen += 1
        features = (1.0, units / self._scale[1], segments / self._scale[2], heads / self._scale[3])
        if self._is_outlier(miss, predicted, seconds):
            return
        miss = abs(seconds - self.predict(units, segments, heads))  # the device may just have been found slower
        self._usual += (miss - self._usual) * max(_SMOOTH, 1 / self._seen)
        self._learn(features, seconds)
        extras = self.predict(units, segments, heads) - self.predict(units)
        self._extras += (extras - self._extras) * _SMOOTH

    def _is_outlier(self, miss: float, predicted: float, seconds: float) -> bool:
        """Tell whether a pass is an outlier: one pass far off says nothing of the next. Many do, and if they are off alike the
        device has become slower or faster as a whole."""
        if self._seen <= _WARM_UP or miss <= max(_FAR * self._usual, _FAR_RELATIVE * predicted):
            self._outliers = max(0, self._outliers - 1)
            return False
        self._outliers += 1
        self._off.append(seconds / max(predicted, _LEAST_PRICE))
        if self._outliers < _PERSISTS:
            return True
        if max(self._off) <= _ALIKE * min(self._off):
            # What small passes cost beside large ones has not changed: passes of one size alone could not tell.
            speed = max(median(self._off), _LEAST_SPEED)
            self._theta = [theta * speed for theta in self._theta]
            self._moment = [m * speed for m in self._moment]
            self._usual *= speed
            self._extras *= speed
            self._outliers = 0
        return False

    def _forget(self, features: Sequence[float]) -> None:
        """Forget a part of what is known of passes like this one; what is known of others stays."""
        gram = self._gram
        along = [sum(g * x for g, x in zip(row, features, strict=True)) for row in gram]
        known = sum(a * x for a, x in zip(along, features, strict=True))
        if known <= _ANCHOR:
            return
        told = sum(m * x for m, x in zip(self._moment, features, strict=True))
        part = (1 - _FORGET) / known
        for i, a in enumerate(along):
            self._moment[i] -= part * a * told
            for j, b in enumerate(along):
                gram[i][j] -= part * a * b

    def _learn(self, features: Sequence[float], seconds: float) -> None:
        self._forget(features)
        for i, x in enumerate(features):
            self._moment[i] += x * seconds
            row = self._gram[i]
            for j, y in enumerate(features):
                row[j] += x * y
        gram = [[g + _ANCHOR * (i == j) for j, g in enumerate(row)] for i, row in enumerate(self._gram)]
        moment = [m + _ANCHOR * theta for m, theta in zip(self._moment, self._theta, strict=True)]
        self._theta = _solve_non_negative(gram, moment)

    def apportion(self, items: Sequence[Item], seconds: float) -> list[float]:
        """Split the measured seconds of a pass by units: φ of each item. An adapter or head is paid by those who use it.

        By units, so that nobody is charged more than for running alone: an equal split, or everyone
        paying the whole pass, does that to the small.
        """
        alpha, beta, gamma, delta = self.coefficients
        units = sum(item.units for item in items)
        by_segment: Counter[Hashable] = Counter()
        by_head: Counter[Hashable] = Counter()
        for item in items:
            by_segment[item.segment] += item.units
            by_head[item.head] += item.units
        per_segment = {s: 0.0 if s is None else gamma / n for s, n in by_segment.items()}
        per_head = {h: 0.0 if h is None else delta / n for h, n in by_head.items()}
        base = max(alpha / units + beta, _LEAST_PRICE)
        raw = [item.units * (base + per_segment[item.segment] + per_head[item.head]) for item in items]
        rescale = seconds / sum(raw)
        return [share * rescale for share in raw]


def _solve_non_negative(gram: list[list[float]], moment: list[float]) -> list[float]:
    """Solve least squares with every unknown ≥ 0: drop the most negative one and solve again until none is."""
    free = list(range(len(moment)))
    solution = [0.0] * len(moment)
    while free:
        found = _solve([[gram[i][j] for j in free] for i in free], [moment[i] for i in free])
        worst = min(range(len(free)), key=found.__getitem__)
        if found[worst] >= 0:
            for i, value in zip(free, found, strict=True):
                solution[i] = value
            break
        del free[worst]
    return solution


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Solve by Gaussian elimination in place. The matrix is positive definite (`_ANCHOR`), so it needs no pivoting."""
    n = len(right)
    for i in range(n):
        for k in range(i + 1, n):
            factor = matrix[k][i] / matrix[i][i]
            right[k] -= factor * right[i]
            for j in range(i, n):
                matrix[k][j] -= factor * matrix[i][j]
    for i in reversed(range(n)):
        right[i] = (right[i] - sum(matrix[i][j] * right[j] for j in range(i + 1, n))) / matrix[i][i]
    return right
