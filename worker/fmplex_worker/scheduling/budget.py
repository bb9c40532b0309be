"""The pass budget of a backbone: as large as its passes may be while the latency targets of its vFMs can be kept."""

from __future__ import annotations

from math import ceil

from .cost import CostModel

_LEAST_YIELD = 0.5  # of a full pass's throughput: a target that costs more is not kept
_REMEMBER_S = 60.0  # a vFM that has sent nothing for so long shortens nobody's passes
_STEP = 0.05  # changes smaller than that are not worth new prices


class PassBudget:
    """Pass size of a backbone, from the cost model and the targets of the vFMs that are in use. It changes slowly: never for one
    job's sake (shorter passes under load cost more throughput than they save latency)."""

    def __init__(self, cost: CostModel, most: int) -> None:
        """Begin without targets: then a pass has `most` units."""
        self._cost = cost
        self._most = most
        self._units = most
        self._targets: dict[str, tuple[float, float]] = {}  # vFM -> seconds a pass may take, last seen

    def record_target(self, vfm: str, pass_s: float, now: float) -> None:
        """Record that a job was claimed of a vFM whose targets allow passes of `pass_s` seconds (`Targets.pass_ms`); 0: any
        length."""
        if pass_s > 0:
            self._targets[vfm] = pass_s, now
        else:
            self._targets.pop(vfm, None)

    def units(self, now: float) -> int:
        """Return how many units a pass may hold now (`now` in seconds)."""
        self._targets = {vfm: seen for vfm, seen in self._targets.items() if now - seen[1] < _REMEMBER_S}
        wanted = self._most
        if self._targets:
            tightest = min(seconds for seconds, _ in self._targets.values())
            wanted = max(self._cost.units_within(tightest, self._most), self.least)
        if wanted == self._most or abs(wanted - self._units) > _STEP * self._units:
            self._units = wanted
        return self._units

    @property
    def least(self) -> int:
        """Units of the shortest pass with half of the throughput of the longest: X/(α+βX) = ½·X*/(α+βX*)."""
        alpha, beta, _, _ = self._cost.coefficients
        if alpha <= 0:
            return 1
        return ceil(self._most * alpha * _LEAST_YIELD / (alpha + (1 - _LEAST_YIELD) * beta * self._most))

    def missed_targets(self) -> list[str]:
        """List the vFMs whose targets want passes shorter than the shortest."""
        shortest = self._cost.predict_pass(self.least)
        return sorted(vfm for vfm, (seconds, _) in self._targets.items() if seconds < shortest)
