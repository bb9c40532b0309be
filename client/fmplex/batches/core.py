"""What both kinds of batches do, on an event loop."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from fmplex.batches.building import InputFile
from fmplex.batches.calls import PAGE, Ask, BatchCalls
from fmplex.batches.records import BatchInfo
from fmplex.batches.rows import Rows
from fmplex.batches.watching import Watch
from fmplex_broker.errors import Conflict, InvalidInput, Unavailable


class BatchCore:
    """One batch, as it was when it was last looked at: `info`. `ask`: for what it needs."""

    def __init__(self, ask: Ask, info: BatchInfo) -> None:
        self._ask = ask
        self.info = info

    async def refresh(self) -> BatchInfo:
        """Look at the batch."""
        self.info = await self._ask(lambda calls: calls.show(self.info.id))
        return self.info

    async def cancel(self) -> None:
        """Cancel the batch; once it has ended this changes nothing."""
        try:
            self.info = await self._ask(lambda calls: calls.cancel(self.info.id))
        except Conflict:  # that was too late
            await self.refresh()

    async def look(self, watch: Watch) -> bool:
        """Look at the batch on behalf of somebody who waits; return whether it has ended. Raises as `Watch` does."""
        await self._ask(lambda calls: calls.ready())  # a closed client is not one whose gateway is away
        try:
            return watch.saw(self.info if self.info.ended else await self.refresh())
        except Unavailable as e:
            watch.missed(self.info.id, e)
            return False

    async def wait(self, timeout: float | None, progress: bool = False) -> BatchInfo:
        """Wait for the batch's end, at most `timeout` seconds. Raises as `Watch` does."""
        with Watch(timeout, progress) as watch:
            while not await self.look(watch):  # noqa: ASYNC110 - it is another process that ends it
                await asyncio.sleep(watch.pause_s())
        return self.info

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


async def begin(ask: Ask, source: InputFile, window: str, metadata: dict[str, str] | None) -> BatchInfo:
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


async def find_all(ask: Ask, limit: int | None) -> list[BatchInfo]:
    """List batches, newest first: all of them, or the first `limit`."""
    found: list[BatchInfo] = []
    more = True
    while more and (limit is None or len(found) < limit):
        wanted = PAGE if limit is None else min(PAGE, limit - len(found))
        after = found[-1].id if found else None
        page, more = await ask(lambda calls: calls.page(wanted, after))  # noqa: B023 - asked at once
        found += page
        more = more and bool(page)
    return found


def why_failed(info: BatchInfo) -> str:
    """Say why a batch failed as a whole."""
    faults = "; ".join(
        f"{fault.code}{f' (line {fault.line})' if fault.line is not None else ''}: {fault.message}"
        for fault in info.faults[:5]
    )
    return f"{info.id} failed: {faults or 'the gateway does not say why'}"
