"""What both kinds of batches do, on an event loop."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from fmplex.batches.building import InputFile
from fmplex.batches.calls import BatchCalls
from fmplex.batches.records import BatchInfo
from fmplex.batches.rows import Rows
from fmplex.following import PAGE, Ask, Followed, Waiting
from fmplex_broker.errors import Conflict, InvalidInput


class BatchWatch(Waiting[BatchInfo]):
    """Watches one batch: lines a second, the time that is left, and how many have failed."""

    def show(self, info: BatchInfo) -> None:
        """Bring the bar to what is known."""
        counts = info.request_counts
        done = counts.completed + counts.failed
        self._bar.update(
            self._task, description=info.status, total=counts.total or None, completed=done,
            failed=f"{counts.failed} failed" if counts.failed else "",
        )  # fmt: skip
        if (speed := self._bar.tasks[0].speed) is not None:
            self._bar.update(self._task, rate=f"{speed:.1f}/s")


class BatchCore(Followed[BatchCalls, BatchInfo]):
    """One batch."""

    watch = BatchWatch

    async def cancel(self) -> None:
        """Cancel the batch; once it has ended this changes nothing."""
        try:
            self.info = await self._ask(lambda calls: calls.cancel(self.info.id))
        except Conflict:  # that was too late
            await self.refresh()

    async def rows(self) -> Rows:
        """Fetch what came of the lines of a batch that has ended. Raises `InvalidInput` if its file could not be taken."""
        info = self.info
        if info.status == "failed" and not (info.output_file_id or info.error_file_id):
            raise InvalidInput(why_failed(info), field="inputs")
        with ExitStack() as undo:
            rows = undo.enter_context(Rows())
            for file_id in (info.output_file_id, info.error_file_id):
                if file_id is not None:
                    into = rows.add()
                    await self._ask(lambda calls: calls.download(file_id, into))  # noqa: B023 - asked at once
            await asyncio.to_thread(rows.index)
            undo.pop_all()
        return rows


async def begin(ask: Ask[BatchCalls], source: InputFile, window: str, metadata: dict[str, str] | None) -> BatchInfo:
    """Send a file and begin a batch with it."""
    file_id = await ask(lambda calls: calls.upload(source.file, source.name))
    tries = 0

    async def create(calls: BatchCalls) -> BatchInfo:
        nonlocal tries
        tries += 1
        if tries > 1:  # the answer to the first try may have been lost
            for info in (await calls.page(PAGE, None))[0]:
                if info.input_file_id == file_id:
                    return info
        return await calls.create(file_id, source.endpoint, window, metadata)

    return await ask(create)


def why_failed(info: BatchInfo) -> str:
    """Say why a batch failed as a whole."""
    faults = "; ".join(
        f"{fault.code}{f' (line {fault.line})' if fault.line is not None else ''}: {fault.message}"
        for fault in info.faults[:5]
    )
    return f"{info.id} failed: {faults or 'the gateway does not say why'}"
