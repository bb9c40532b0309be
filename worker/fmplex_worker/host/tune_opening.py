"""From a tuning job's record to a training that can run: its files, what it goes on from, its last checkpoint."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from fmplex_broker.errors import FmplexError, InvalidInput, UnknownFile
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.tune_fits import fit_of
from fmplex_broker.specs.tuning import TuneSpec, split_checkpoint_id
from fmplex_broker.streams.tune_owner import HeldTune
from fmplex_worker.host.tune_desk import TuneDesk
from fmplex_worker.host.tune_shelf import of_step
from fmplex_worker.training import Training, TuneOrder

log = logging.getLogger(__name__)


class Opening:
    """Opens one tuning job, in a `folder` of its own. `base`: the package that it goes on from, once it is known."""

    def __init__(self, held: HeldTune, desk: TuneDesk, folder: Path) -> None:
        self.base: Package | None = None
        self._held = held
        self._desk = desk
        self._folder = folder
        self._begun = False

    async def open(self) -> Training:
        """Open the training, after its last checkpoint that can be read. Raises what is wrong with the order (`param`s of it),
        and `Unavailable`."""
        desk, spec = self._desk, self._held.record.spec
        data = await self._fetched(spec.training_file, "training_file")
        validation = None
        if spec.validation_file is not None:
            validation = await self._fetched(spec.validation_file, "validation_file")
        self.base = await self._start(spec)
        order = TuneOrder(fit_of(spec, data, desk.backbone), validation, self.base, desk.memory.budget)
        opening = asyncio.ensure_future(self._opened(order))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            if self._begun:  # its thread goes on, and may be the death of this worker
                opening.add_done_callback(_let_go)
            else:
                opening.cancel()
            raise

    async def _fetched(self, file: str, field: str) -> Path:
        try:
            record = await self._desk.files.find(file, self._held.record.spec.owner)
            return await self._desk.off_loop(self._desk.shelf.fetch, record, self._folder)
        except FmplexError as e:
            e.field = field
            raise

    async def _start(self, spec: TuneSpec) -> Package | None:
        """Read what training goes on from; None: the backbone as it is."""
        desk, base = self._desk, spec.base
        if base is None:
            return None
        try:
            if base.checkpoint is None:
                return await desk.off_loop(desk.shelf.version, base.version)
            with suppress(UnknownFile):
                return await desk.off_loop(desk.shelf.base, spec.id)
            return await self._copied(base.checkpoint, spec)
        except FmplexError as e:
            e.field = "model"
            raise

    async def _copied(self, checkpoint: str, spec: TuneSpec) -> Package:
        """Read a checkpoint of another job, and keep a copy: that one may drop it before this one has ended."""
        desk, found = self._desk, split_checkpoint_id(checkpoint)
        if found is None:
            raise InvalidInput(f"{checkpoint[:64]!r} is no checkpoint")
        record = await desk.tunes.find(found[0], spec.owner)
        package = await desk.off_loop(desk.shelf.package, found[0], of_step(record.checkpoints, found[1]).name)
        await desk.off_loop(desk.shelf.keep_base, spec.id, package)
        return package

    async def _opened(self, order: TuneOrder) -> Training:
        desk, held = self._desk, self._held
        async with desk.setting_up(held.id):
            self._begun = True
            for checkpoint in reversed(held.checkpoints):
                try:
                    state = await desk.off_loop(desk.shelf.state, held.id, checkpoint.name)
                    return await desk.off_loop(desk.engine.tune, order, state)
                except (InvalidInput, UnknownFile) as e:
                    if isinstance(e, InvalidInput) and e.field != "state":
                        raise
                    held.say(f"The checkpoint of step {checkpoint.step} cannot be used ({e.message})", "warn")
            return await desk.off_loop(desk.engine.tune, order, None)


def _let_go(opening: asyncio.Future[Training]) -> None:
    """Take what came of an opening that nobody waits for any more."""
    if not opening.cancelled():
        opening.exception()
