"""The checker of a gateway: looks through the files of tuning jobs, before a worker may have them.

Every gateway takes jobs that nobody looks at, one at a time. Who was thought dead and was not finds the same as who came after
it, so nothing is fenced.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import IO

from fmplex_broker.errors import BrokerUnavailable, FmplexError, InvalidInput, StoreUnavailable, UnknownFile
from fmplex_broker.examples.checking import DataFile, check_examples, check_texts
from fmplex_broker.examples.files import Row, rows_of
from fmplex_broker.specs.files import FileRecord
from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.tune_records import TuneError, TuneRecord
from fmplex_broker.specs.tuning import TuneSpec
from fmplex_broker.streams.outages import Outage
from fmplex_broker.streams.tunes import Tunes
from fmplex_gateway.ending import end
from fmplex_gateway.files.keeping import Files
from fmplex_gateway.fine_tuning.ordering import MOST_LINE_BYTES
from fmplex_gateway.turns import in_turns

log = logging.getLogger(__name__)
_EVERY_S = 1.0
_MOST_CHECKS = 20
_FIELDS = ("training_file", "validation_file")
_HELD_OUT: float = FitSpec.model_fields["held_out"].default


class Checker:
    """Looks through files, from `start` to `close`."""

    def __init__(self, tunes: Tunes, files: Files) -> None:
        self._tunes = tunes
        self._files = files
        self._woken = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tunes")  # one: the event loop must get its turns
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to take jobs."""
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Look at once: a job was ordered."""
        self._woken.set()

    async def close(self) -> None:
        """Take no more jobs; another gateway looks at the one in hand."""
        self._closed = True  # a thread that looks at a large file must not hold up the end of the process
        if self._task is not None:
            await end([self._task])
        self._thread.shutdown(wait=False, cancel_futures=True)

    # --- inner ---

    async def _run(self) -> None:
        outage = Outage(log, "looking through files of tuning jobs")
        while True:
            pause_s = _EVERY_S
            try:
                for record in await self._tunes.take_unchecked(1):
                    await self._check(record)
                    pause_s = 0.0
                outage.over()
            except FmplexError as e:
                if type(e) is not BrokerUnavailable:  # that the broker is away is said by who watches it
                    outage.say(e)
            except Exception:  # whatever it was, the other jobs must be looked at
                log.exception("looking through the files of a tuning job failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
            self._woken.clear()

    async def _check(self, record: TuneRecord) -> None:
        """Look through the files of a job, and say what was found; as long as the store is away it waits, as all others must."""
        if record.checks > _MOST_CHECKS:
            words = "the gateways failed again and again at looking through the files; their logs say how"
            await self._tunes.checked(record, TuneError(code="check_failed", message=words))
            return
        try:
            training, validation = [await self._find(record.spec, field) for field in _FIELDS]
            examples = await self._seen(record.spec, training, validation)
        except (InvalidInput, UnknownFile) as e:
            code = f"invalid_{e.field}" if isinstance(e, InvalidInput) else e.code
            await self._tunes.checked(record, TuneError(code=code, message=e.message, param=e.field))
        else:
            await self._tunes.checked(record, examples=examples)

    async def _seen(self, spec: TuneSpec, training: FileRecord | None, validation: FileRecord | None) -> int:
        outage, loop = Outage(log, f"the files of tuning job {spec.id}"), asyncio.get_running_loop()
        while True:
            try:
                examples = await loop.run_in_executor(self._thread, self._look, spec, training, validation)
            except StoreUnavailable as e:
                outage.say(e)
                await asyncio.sleep(_EVERY_S)
            else:
                outage.over()
                return examples

    async def _find(self, spec: TuneSpec, field: str) -> FileRecord | None:
        file = getattr(spec, field)
        try:
            return None if file is None else await self._files.list.find(file, spec.owner)
        except UnknownFile as e:
            e.field = field
            raise

    def _look(self, spec: TuneSpec, training: FileRecord | None, validation: FileRecord | None) -> int:
        """Look through the files; return how many examples there are to train on. Raises `InvalidInput` and `UnknownFile`, whose
        field is that of the file, and `StoreUnavailable`."""
        with ExitStack() as stack:
            opened = [
                self._open(stack, file, field) for file, field in zip((training, validation), _FIELDS, strict=True)
            ]
            assert opened[0] is not None  # there is no job without
            head = spec.fit.head
            if head is None or head == "generation":
                return check_texts(opened[0], opened[1])
            shuffle = spec.seed if spec.fit.shuffle else None
            held_out = spec.fit.held_out or _HELD_OUT
            return check_examples(head, opened[0], opened[1], held_out=held_out, shuffle=shuffle)

    def _open(self, stack: ExitStack, file: FileRecord | None, field: str) -> DataFile | None:
        if file is None:
            return None
        try:
            content = stack.enter_context(self._files.store.open(file.id))
        except UnknownFile as e:
            e.field = field
            raise
        return DataFile(in_turns(self._rows(content, file.filename)), file.filename)

    def _rows(self, content: IO[bytes], name: str) -> Iterator[Row]:
        """Yield the rows of a file; what is wrong with it as a whole is raised where rows are drawn."""
        for row in rows_of(content, name, MOST_LINE_BYTES):
            if self._closed:
                raise _Closed
            yield row


class _Closed(Exception):
    """Nobody waits for what is found any more."""
