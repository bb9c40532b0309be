"""What the passes of this worker contained, while somebody records them (`fmplex trace`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from fmplex_broker.wire.passes import TRAINING, PassPart, PassRecord
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.protocol import Outcome
from fmplex_worker.scheduling import Plan, Scheduler

_MOST = 2000  # passes between two reports; of more, the latest


class _Planned(NamedTuple):
    """What was known of a pass when it was planned."""

    budget: int
    waiting: int


class Recorder:
    """One record a pass while it is on; off, it does nothing. Of one life of a worker, whose passes are numbered from 1."""

    def __init__(self, backbone: str, worker: str, scheduler: Scheduler, clock: ServerClock) -> None:
        self._backbone = backbone
        self._worker = worker
        self._scheduler = scheduler
        self._clock = clock
        self._on = False
        self._planned: dict[int, _Planned] = {}
        self._records: deque[PassRecord] = deque(maxlen=_MOST)

    def listen(self, on: bool) -> None:
        """Record the passes that are launched from now on, or stop and forget what nobody wants to hear."""
        self._on = on
        if not on:
            self._planned.clear()
            self._records.clear()

    def launched(self, plan: Plan) -> None:
        """Note what is known of a pass as it is launched."""
        if self._on:
            self._planned[plan.number] = _Planned(self._scheduler.budget, len(self._scheduler))

    def landed(self, plan: Plan, enqueued_ms: Sequence[int], outcome: Outcome, charges: Sequence[float]) -> None:
        """Record a pass that has ended; `enqueued_ms` (server time) and `charges` (seconds) are of each item of its plan."""
        planned = self._planned.pop(plan.number, None)
        if planned is None:
            return
        start_ms = self._clock.at_ms(outcome.ended - outcome.seconds)
        parts: dict[str, PassPart] = {}
        for item, came_ms, charge in zip(plan.items, enqueued_ms, charges, strict=True):
            part = parts.setdefault(item.flow.vfm, PassPart(item.flow.vfm))
            part.jobs += 1
            part.units += item.units
            part.charged_s += charge
            part.wait_ms = max(part.wait_ms, start_ms - came_ms)
        self._records.append(
            PassRecord(
                self._worker, self._backbone, plan.number, plan.cls, start_ms, outcome.seconds, plan.seconds,
                plan.units, planned.budget, planned.waiting, list(parts.values()),
            )
        )  # fmt: skip

    def lent(self, part: PassPart, predicted_s: float, ended: float) -> None:
        """Record that the device was lent to training until `ended` (monotonic seconds): `part` says whose, how many units,
        how large, and how long."""
        if self._on:
            self._records.append(
                PassRecord(
                    self._worker, self._backbone, 0, TRAINING, self._clock.at_ms(ended - part.charged_s), part.charged_s,
                    predicted_s, part.units, self._scheduler.budget, len(self._scheduler), [part],
                )
            )  # fmt: skip

    def drain(self) -> list[PassRecord] | None:
        """Return the records since the last call, with the weights that their vFMs have now; None while it is off."""
        if not self._on:
            return None
        records = list(self._records)
        self._records.clear()
        for part in (part for record in records if record.cls != TRAINING for part in record.parts):
            part.weight = self._scheduler.weights.get(part.vfm, 1.0)
        return records
