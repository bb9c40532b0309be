"""Saving the checkpoints of a training: cut on the device thread, between two units; serialised and written on another."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from fmplex_broker.errors import StoreUnavailable
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.tune_records import Checkpoint
from fmplex_broker.streams.outages import Outage
from fmplex_broker.streams.tune_owner import HeldTune
from fmplex_worker.host.training_job import TrainingJob
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
        self._cut: tuple[Snapshot, RunProgress] | None = None
        self._next = 0.0
        self._saved = 0
        self._outage = Outage(log, f"checkpoints of {held.id}")

    def take(self) -> RunProgress | None:
        """Take what the device thread has noted; return the progress of that time, None if there is nothing new."""
        job = self._job
        if job.snapshot is None or job.noted is None:
            return None
        self._cut, job.snapshot = (job.snapshot, job.noted), None
        return job.noted

    @property
    def due(self) -> bool:
        """Whether something new is to be saved now; the last one saved is a while ago."""
        return self._waits and time.monotonic() >= self._next

    @property
    def _waits(self) -> bool:
        return self._cut is not None and self._cut[0].step > self._kept

    async def keep(self) -> Checkpoint | None:
        """Write what is new into the store; return it, None if nothing is. Raises `StoreUnavailable`: try again later."""
        self.take()
        if not self._waits:
            return None
        began = time.monotonic()
        ((snapshot, noted, files),) = await self._desk.device.lend(self._pack())
        self._saved += 1
        name = f"{snapshot.step}-{self._held.take}-{self._saved}"
        nbytes = await self._desk.off_loop(self._write, name, snapshot, files)
        now = time.monotonic()
        self._kept, self._next = snapshot.step, now + max(_LEAST_S, _TIMES * (now - began))
        self._outage.over()
        return Checkpoint(
            step=snapshot.step,
            name=name,
            created_at=int(time.time()),
            best=noted.best_step == snapshot.step,
            loss=noted.loss,
            validation=noted.validation_score if noted.validation_loss is None else noted.validation_loss,
            tokens=noted.tokens,
            bytes=nbytes,
        )

    async def try_to_keep(self) -> Checkpoint | None:
        """Write what is new, unless the store is away: then that waits for the next time."""
        try:
            return await self.keep()
        except StoreUnavailable as e:
            self._outage.say(e)
            self._next = time.monotonic() + _LEAST_S
            return None

    def _pack(self) -> Iterator[tuple[Snapshot, RunProgress, dict[str, bytes]]]:
        """Take state and package of the same moment. Device thread."""
        self.take()  # a later one may be there by now, and it is that one's package
        assert self._cut is not None
        yield (*self._cut, self._job.training.package("last"))

    def _write(self, name: str, snapshot: Snapshot, files: dict[str, bytes]) -> int:
        package = package_of(files, self._name, self._base)
        return self._desk.shelf.keep(self._held.id, name, snapshot.dump(), package)
