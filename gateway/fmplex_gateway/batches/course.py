"""The course of one batch, from wherever it is to its end: validate, answer its lines, join their rows to files, clear up."""

from __future__ import annotations

from typing import Any

from fmplex_broker.errors import UnknownFile
from fmplex_broker.specs.batches import ENDED, Status
from fmplex_broker.specs.files import FileRecord, derived_file_id
from fmplex_broker.streams.batch_list import LOST, Held, Lease
from fmplex_gateway.batches.desk import Desk
from fmplex_gateway.batches.errors import NotRun
from fmplex_gateway.batches.feeding import CANCELLED, DELETED, EXPIRED, Feeding
from fmplex_gateway.batches.parts import Kind, Parts
from fmplex_gateway.batches.patience import Patience
from fmplex_gateway.batches.validating import BatchError, Checked, check_file

_MOST_TAKES = 50
_ENDINGS: dict[NotRun | None, Status] = {None: "completed", EXPIRED: "expired", DELETED: "failed"}
_FILES: tuple[tuple[Kind, str], ...] = (("output", "output_file_id"), ("errors", "error_file_id"))


class Course:
    """The course of a batch that is `held`. Whoever renews its lease tells it what was said."""

    def __init__(self, desk: Desk, held: Held) -> None:
        self.batch, self.holder = held.record.order.id, held.holder
        self._desk = desk
        self._record = held.record
        self._patience = Patience(self.batch)
        self._parts = Parts(desk, held, self._patience)
        self._feeding: Feeding | None = None
        self._cancelled = self._deleted = False

    @property
    def still_s(self) -> float:
        """For how many seconds no line has been answered."""
        return self._parts.still_s

    def tell(self, lease: Lease) -> None:
        """Take what was said to the renewal of the lease."""
        if lease.status == LOST:
            self._patience.end(lost=True)
        else:
            self._patience.renewed()
        self._cancelled = self._cancelled or lease.status == "cancelling"
        self._deleted = self._deleted or not lease.input_there
        self._tell_feeding()

    def close(self) -> None:
        """Let the batch be given back, once what is answered is recorded."""
        self._patience.end()
        self._tell_feeding()

    async def drop(self) -> None:
        """Give up the lines that are with workers."""
        if self._feeding is not None:
            await self._feeding.window.stop()

    async def run(self) -> None:
        """Lead the batch to its end. Raises `Lost` when somebody else has it, and `GivenBack` once it may be given back."""
        if self._record.takes > _MOST_TAKES and self._record.status not in ENDED:
            words = "the gateways failed again and again at this batch; their logs say how"
            await self._fail([BatchError("feeding_failed", words)])
        if self._record.status == "validating":
            await self._validate()
        if self._record.in_progress_at is not None and self._record.status in ("in_progress", "cancelling"):
            await self._answer()
        if self._record.status in ("finalizing", "cancelling"):
            await self._finish()
        await self._patience.until_done(self._clear_up)

    # --- the states ---

    async def _validate(self) -> None:
        try:
            checked = await self._patience.until_done(lambda: self._desk.disk.compute(self._check))
        except UnknownFile:
            await self._fail([_deleted("input_file_id")])
            return
        if checked.errors:
            await self._fail(checked.errors)
        else:
            await self._move("in_progress", total=checked.total)

    def _check(self) -> Checked:
        with self._desk.store.open(self._record.order.input_file_id) as file:
            return check_file(file)

    async def _answer(self) -> None:
        self._feeding = Feeding(self._desk, self._record, self.holder, self._parts, self._patience)
        self._tell_feeding()
        why = await self._feeding.answer_all()
        if why is CANCELLED:
            await self._read()
        elif why is DELETED:
            await self._move("finalizing", ending="failed", errors=[_deleted(None)._asdict()])
        else:
            await self._move("finalizing", ending=_ENDINGS[why])

    async def _finish(self) -> None:
        fields: dict[str, Any] = {}
        try:
            for kind, field in _FILES:
                if (file := await self._published(kind)) is not None:
                    fields[field] = file
        except UnknownFile as e:
            words = f"answers that were in the artifact store have gone ({e.message}); send the batch again"
            await self._fail([BatchError("answers_lost", words)])
        else:
            await self._move(self._record.ending, **fields)

    async def _clear_up(self) -> None:
        """Delete the parts, and an input file whose record went while the batch held it."""
        desk, file = self._desk, self._record.order.input_file_id
        if self._record.takes <= _MOST_TAKES:
            await desk.disk.run(desk.store.delete, self.batch)
            if not await desk.files.known([file]) and not await desk.files.held(file):
                await desk.disk.run(desk.store.delete, file)
                await desk.files.gone(file)
        await desk.batches.give_back({self.batch: self.holder}, over=True)

    # --- inner ---

    async def _published(self, kind: Kind) -> str | None:
        """Make the rows of a kind a file, the same however often this is done; return its id, None if there are no rows."""
        made_at, order = self._record.made_at, self._record.order
        file = derived_file_id(made_at, f"{self.batch}/{kind}")
        nbytes = await self._parts.join(kind, file)
        if nbytes is None:
            return None
        record = FileRecord(
            id=file,
            owner=order.owner,
            bytes=nbytes,
            created_at=made_at,
            expires_at=made_at + order.output_life_s,
            filename=f"{self.batch}_{kind}.jsonl",
            purpose="batch_output",
        )
        await self._patience.until_done(lambda: self._desk.files.add(record))
        return file

    async def _fail(self, errors: list[BatchError]) -> None:
        await self._move("failed", errors=[error._asdict() for error in errors])

    async def _move(self, to: Status, **fields: Any) -> None:
        await self._patience.until_done(lambda: self._desk.batches.move(self.batch, self.holder, to, **fields))
        await self._read()

    async def _read(self) -> None:
        find, owner = self._desk.batches.find, self._record.order.owner
        self._record = await self._patience.until_done(lambda: find(self.batch, owner))

    def _tell_feeding(self) -> None:
        if self._feeding is not None:
            self._feeding.tell(cancelled=self._cancelled, deleted=self._deleted)


def _deleted(param: str | None) -> BatchError:
    words = (
        "the input file was deleted while the batch needed it; upload it again (or the artifact store has lost it: do all "
        "gateways have the same one?)"
    )
    return BatchError(DELETED.code, words, param=param)
