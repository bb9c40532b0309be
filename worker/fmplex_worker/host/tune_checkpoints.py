"""Saving the checkpoints of a training: cut on the device thread, between two units; made and written on another."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator

from fmplex_broker.errors import StoreUnavailable
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.tune_records import Checkpoint
from fmplex_broker.streams.outages import Outage
from fmplex_broker.streams.tune_owner import HeldTune
from fmplex_worker.host.training_job import Cut, TrainingJob
from fmplex_worker.host.tune_desk import TuneDesk
from fmplex_worker.host.tune_publishing import published_as
from fmplex_worker.host.tune_shelf import package_of
from fmplex_worker.training import RunProgress, Snapshot

log = logging.getLogger(__name__)
_LEAST_S = 5.0  # between two checkpoints
_TIMES = 50  # as long as it took to save one, until the next


class Checkpoints:
    """The checkpoints of one training in hand, which went on from `base`."""

    def __init__(self, held: HeldTune, desk: TuneDesk, job: TrainingJob, base: Package | None) -> None:
        self._held = held
        self._desk = desk
        self._job = job
        self._base = base
        self._name = published_as(held.record.spec.publish, held.id)
        last = held.checkpoints[-1] if held.checkpoints else None
        self._kept = 0 if last is None else last.step
        self._last: Cut | None = None
        self._best: Cut | None = None
        self._next = 0.0
        self._saved = 0
        self._outage = Outage(log, f"checkpoints of {held.id}")

    def take(self) -> RunProgress | None:
        """Take what the device thread has noted; return the progress of that time, None if there is nothing new."""
        job = self._job
        if job.best is not None:
            self._best, job.best = job.best, None
        if job.cut is None:
            return None
        self._last, job.cut = job.cut, None
        return self._last.progress

    @property
    def due(self) -> bool:
        """Whether something new is to be saved now; the last one saved is a while ago."""
        return bool(self._waiting) and time.monotonic() >= self._next

    @property
    def _waiting(self) -> list[Cut]:
        """What is to be saved: the best state, should later ones have come since, and the last one."""
        cuts = {cut.step: cut for cut in (self._best, self._last) if cut is not None and cut.step > self._kept}
        return [cuts[step] for step in sorted(cuts)]

    async def keep(self) -> AsyncIterator[Checkpoint]:
        """Write what is new into the store, and yield it. What nobody has taken counts as not written. Raises `StoreUnavailable`:
        try again later."""
        self.take()
        for cut in self._waiting:
            began = time.monotonic()
            self._saved += 1
            name = f"{cut.step}-{self._held.take}-{self._saved}"
            nbytes = await self._desk.off_loop(self._write, name, cut.snapshot)
            now = time.monotonic()
            self._next = now + max(_LEAST_S, _TIMES * (now - began))
            self._outage.over()
            yield _checkpoint(cut, name, nbytes)
            self._kept = cut.step

    async def try_to_keep(self) -> AsyncIterator[Checkpoint]:
        """Write what is new, unless the store is away: then that waits for the next time."""
        try:
            async for checkpoint in self.keep():
                yield checkpoint
        except StoreUnavailable as e:
            self._outage.say(e)
            self._next = time.monotonic() + _LEAST_S

    def _write(self, name: str, snapshot: Snapshot) -> int:
        package = package_of(snapshot.package(), self._name, self._base)
        return self._desk.shelf.keep(self._held.id, name, snapshot.dump(), package)


def _checkpoint(cut: Cut, name: str, nbytes: int) -> Checkpoint:
    then = cut.progress
    return Checkpoint(
        step=cut.step,
        name=name,
        created_at=int(time.time()),
        best=cut.best,
        loss=then.loss,
        validation=then.validation_score if then.validation_loss is None else then.validation_loss,
        tokens=then.tokens,
        bytes=nbytes,
    )
