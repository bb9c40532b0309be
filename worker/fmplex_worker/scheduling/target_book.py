"""The targets of the vFMs that are in use. Pure: `now` in monotonic seconds."""

from __future__ import annotations

from fmplex_broker.specs.vfm import Targets

from .budget import PassBudget

_REMEMBER_S = 60.0  # a vFM that has sent nothing for so long is not expected


class TargetBook:
    """Targets as claims tell of them, for the pass budget and for whoever else has to keep them."""

    def __init__(self, budget: PassBudget) -> None:
        self._budget = budget
        self._seen: dict[str, tuple[Targets, float]] = {}
        self.loosest_s = 0.0  # of all targets, as of the last look at those that are expected

    def record(self, vfm: str, targets: Targets, now: float) -> None:
        """Record that interactive jobs of a vFM with these targets were claimed."""
        self._budget.record_target(vfm, targets.pass_ms / 1000, now)
        if any(targets):
            self._seen[vfm] = targets, now
        else:
            self._seen.pop(vfm, None)

    def of(self, vfm: str) -> Targets | None:
        """Return the targets of a vFM; None if it has none, or has not been heard of for long."""
        seen = self._seen.get(vfm)
        return seen[0] if seen else None

    def expected_s(self, now: float) -> float:
        """Return the tightest target, in seconds, of a job that may come at any moment: of a vFM in use, for its reply or its
        first token; 0: there is none."""
        for vfm in [vfm for vfm, (_, at) in self._seen.items() if now - at >= _REMEMBER_S]:
            del self._seen[vfm]
        self.loosest_s = max((max(targets) for targets, _ in self._seen.values()), default=0.0) / 1000
        firsts = (ms for targets, _ in self._seen.values() for ms in (targets.latency_ms, targets.ttft_ms) if ms > 0)
        return min(firsts, default=0.0) / 1000
