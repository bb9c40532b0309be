"""What is kept of the units that ran: counters, records for who traces, and which requests they have made late."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from fmplex_broker.wire.passes import PassPart
from fmplex_broker.wire.stats import TrainingStats
from fmplex_worker.host.tracing import Recorder
from fmplex_worker.scheduling import LentTime, Slack, TargetBook
from fmplex_worker.training import Unit

_SMOOTH = 0.05


class UnitRun(NamedTuple):
    """A unit that has run: how many seconds it took and was expected to, and when it ended (monotonic seconds)."""

    unit: Unit
    seconds: float
    predicted: float
    ended: float


class TrainingBooks:
    """Books of one life of a worker; event loop only."""

    def __init__(self, stats: TrainingStats, slack: Slack, targets: TargetBook, recorder: Recorder) -> None:
        self.stats = stats
        self._slack = slack
        self._targets = targets
        self._recorder = recorder
        self._lent = LentTime()

    def ran(self, vfm: str, weight: float, runs: Sequence[UnitRun]) -> float:
        """Note the units of one loan, all of one training of a vFM; return how many seconds they took."""
        stats = self.stats
        for unit, seconds, predicted, ended in runs:
            stats.units[unit.kind] += 1
            stats.seconds[unit.kind] = stats.seconds.get(unit.kind, 0.0) + seconds
            stats.tokens[vfm] += unit.tokens if unit.kind == "loss" else 0  # there is one for each row
            stats.error += (min(1.0, abs(seconds - predicted) / max(predicted, 1e-9)) - stats.error) * _SMOOTH
            self._slack.note_unit(seconds, predicted, ended)
        if runs:
            begun, ended = runs[0].ended - runs[0].seconds, runs[-1].ended
            self._lent.add(begun, ended)
            most = max(run.unit.tokens for run in runs)
            part = PassPart(vfm, len(runs), most, ended - begun, weight=weight)
            self._recorder.lent(part, sum(run.predicted for run in runs), ended)
        return sum(run.seconds for run in runs)

    def caught_up(self, now: float) -> None:
        """Note that no request waits."""
        self._lent.caught_up(now)

    def answered(self, vfm: str, latency_ms: float) -> None:
        """Judge a reply, `latency_ms` after its job was enqueued."""
        if (targets := self._targets.of(vfm)) and targets.latency_ms:
            self._judge(targets.latency_ms, latency_ms)

    def first_token(self, vfm: str, ms: float) -> None:
        """Judge the first token of a text, `ms` after its job was enqueued."""
        if (targets := self._targets.of(vfm)) and targets.ttft_ms:
            self._judge(targets.ttft_ms, ms)

    def next_tokens(self, vfm: str, count: int, ms: float) -> None:
        """Judge `count` more tokens of a text, `ms` after the one before."""
        if (targets := self._targets.of(vfm)) and targets.inter_token_ms:
            self._judge(targets.inter_token_ms * count, ms, token=True)

    def _judge(self, target_ms: float, took_ms: float, *, token: bool = False) -> None:
        now = time.monotonic()
        lent_ms = 1000 * self._lent.within(now - took_ms / 1000, now)
        if lent_ms <= 0:
            return  # no unit is to blame, whether it was late or not
        late = took_ms > target_ms >= took_ms - lent_ms
        self.stats.touched += 1
        self.stats.late += late
        (self._slack.spend_tokens if token else self._slack.spend).judge(late, now)
