"""Batches, for code with an event loop: `client.batches` of an `AsyncClient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

from fmplex.batches.building import prepare
from fmplex.batches.calls import BatchCalls
from fmplex.batches.core import BatchCore, begin
from fmplex.batches.records import BatchCounts, BatchInfo, BatchResult
from fmplex.batches.rows import write_rows
from fmplex.call import wait_s
from fmplex.following import Ask, all_pages


class AsyncBatch:
    """A batch: many inputs that the fleet answers from spare capacity, whether or not this program is there.

    Iterate (`async for`) for what came of each line, as a `BatchResult`, in the order of the inputs: that waits for its end.
    Raises `InvalidInput` if its file could not be taken. `core`: what does the work.
    """

    def __init__(self, core: BatchCore) -> None:
        self._core = core

    @property
    def id(self) -> str:
        """Its name, by which `client.batches.get` finds it again."""
        return self._core.info.id

    @property
    def status(self) -> str:
        """How far it was when it was last looked at: `BatchInfo.status`."""
        return self._core.info.status

    @property
    def counts(self) -> BatchCounts:
        """How many lines it had, and how many were answered or failed, when it was last looked at."""
        return self._core.info.request_counts

    @property
    def info(self) -> BatchInfo:
        """All that is known of it since it was last looked at."""
        return self._core.info

    async def refresh(self) -> BatchInfo:
        """Look at it now; return what is known of it."""
        return await self._core.refresh()

    async def wait(self, timeout: float | None = None, progress: bool = False) -> BatchInfo:
        """Wait for its end, at most `timeout` seconds (None: as long as it takes); return what is known of it then.

        `progress`: draw a bar on standard error. Raises `TimeoutError` (the batch goes on; wait again), or `Unavailable` when
        the gateway has been away for ten minutes.
        """
        return await self._core.wait(wait_s(timeout), progress)

    async def cancel(self) -> BatchInfo:
        """Cancel it: lines that have been answered stay answered, the others fail with `batch_cancelled`. Return it as it is
        then: cancelling, and soon cancelled. One that has ended stays as it is."""
        await self._core.cancel()
        return self._core.info

    async def fetch(self, path: str | Path) -> int:
        """Wait for its end, and write what came of each line to the file at `path`, as JSON lines in the order of the inputs;
        return how many of them have failed."""
        await self.wait()
        with await self._core.rows() as rows:
            return await asyncio.to_thread(write_rows, rows, Path(path))

    async def __aiter__(self) -> AsyncIterator[BatchResult]:
        await self.wait()
        with await self._core.rows() as rows:
            for result in rows:
                yield result


class AsyncBatches:
    """The batches of whoever asks: `client.batches` of an `AsyncClient`, who `ask`s for them. They are kept by a gateway:
    straight to the broker all methods raise `InvalidInput`.

    All raise `Unauthorized`, `Forbidden` or `Unavailable`.
    """

    def __init__(self, ask: Ask[BatchCalls]) -> None:
        self._ask = ask

    async def submit(
        self,
        inputs: str | Path | Iterable[Any],
        *,
        vfm: str | None = None,
        params: Mapping[str, Any] | None = None,
        column: str = "text",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncBatch:
        """Send many inputs to be answered from spare capacity; return the batch, which goes on by itself.

        `inputs`: any number of inputs as of `infer`, or the path of a file: a text a line, JSON lines (`.jsonl`), a table
        (`.csv`, `.tsv`, with the texts in `column` and, if there is one, their pairs in `text_pair`), or of a folder, each
        file of which is a text. `vfm`: its name; `params`: for each input, as of `infer`. A file of requests as OpenAI's
        batches have them says for itself what its lines are for. `completion_window`: how long it may take, from `5m` to
        `7d`; what has not run by then fails with `batch_expired`. `metadata`: up to 16 texts by names, kept with it.

        Raises `InvalidInput` for what can be no batch, `TooLarge` for too large a file. What is wrong with a line is told in
        its place.

            batch = await client.batches.submit("comments.csv", vfm="sentiment")
            async for result in batch:
                print(result.line, result.error or result.output["label"])
        """
        await self._ask(lambda calls: calls.ready())  # or refuse, before the inputs are drawn
        source = await asyncio.to_thread(prepare, inputs, vfm, params or {}, column)
        with source:
            info = await begin(self._ask, source, completion_window, dict(metadata) if metadata else None)
        return AsyncBatch(BatchCore(self._ask, info))

    async def get(self, id: str) -> AsyncBatch:
        """Return the batch called `id` as it is now."""
        info = await self._ask(lambda calls: calls.show(id))
        return AsyncBatch(BatchCore(self._ask, info))

    async def list(self, limit: int | None = None) -> list[AsyncBatch]:
        """List batches, newest first: all of them, or the first `limit`."""
        return [AsyncBatch(BatchCore(self._ask, info)) for info in await all_pages(self._ask, BatchCalls.page, limit)]
