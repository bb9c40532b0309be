"""Batches, for code without an event loop: `client.batches` of a `Client`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fmplex.batches.building import prepare
from fmplex.batches.calls import BatchCalls
from fmplex.batches.core import BatchCore, BatchWatch, begin
from fmplex.batches.records import BatchCounts, BatchInfo, BatchResult
from fmplex.batches.rows import write_rows
from fmplex.call import wait_s
from fmplex.following import Ask, all_pages
from fmplex.loop_thread import LoopThread


class Batch:
    """A batch: many inputs that the fleet answers from spare capacity, whether or not this program is there.

    Iterate for what came of each line, as a `BatchResult`, in the order of the inputs: that waits for its end. Raises
    `InvalidInput` if its file could not be taken. `core`: what does the work, on `loop`.
    """

    def __init__(self, core: BatchCore, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

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

    def refresh(self) -> BatchInfo:
        """Look at it now; return what is known of it."""
        return self._loop.run(self._core.refresh())

    def wait(self, timeout: float | None = None, progress: bool = False) -> BatchInfo:
        """Wait for its end, at most `timeout` seconds (None: as long as it takes); return what is known of it then.

        `progress`: draw a bar on standard error. Raises `TimeoutError` (the batch goes on; wait again), or `Unavailable` when
        the gateway has been away for ten minutes.
        """
        with BatchWatch(wait_s(timeout), progress) as watch:
            while not self._loop.run(self._core.look(watch)):
                time.sleep(watch.pause_s())
        return self._core.info

    def cancel(self) -> BatchInfo:
        """Cancel it: lines that have been answered stay answered, the others fail with `batch_cancelled`. Return it as it is
        then: cancelling, and soon cancelled. One that has ended stays as it is."""
        self._loop.run(self._core.cancel())
        return self._core.info

    def fetch(self, path: str | Path) -> int:
        """Wait for its end, and write what came of each line to the file at `path`, as JSON lines in the order of the inputs;
        return how many of them have failed."""
        self.wait()
        with self._loop.run(self._core.rows()) as rows:
            return write_rows(rows, Path(path))

    def __iter__(self) -> Iterator[BatchResult]:
        self.wait()
        with self._loop.run(self._core.rows()) as rows:
            yield from rows


class Batches:
    """The batches of whoever asks: `client.batches` of a `Client`. They are kept by a gateway: straight to the broker all
    methods raise `InvalidInput`.

    All raise `Unauthorized`, `Forbidden` or `Unavailable`. `ask`: how to ask for them; `loop`: where it does.
    """

    def __init__(self, ask: Ask[BatchCalls], loop: LoopThread) -> None:
        self._ask = ask
        self._loop = loop

    def submit(
        self,
        inputs: str | Path | Iterable[Any],
        *,
        vfm: str | None = None,
        params: Mapping[str, Any] | None = None,
        column: str = "text",
        completion_window: str = "24h",
        metadata: Mapping[str, str] | None = None,
    ) -> Batch:
        """Send many inputs to be answered from spare capacity; return the batch, which goes on by itself.

        `inputs`: any number of inputs as of `infer`, or the path of a file: a text a line, JSON lines (`.jsonl`), a table
        (`.csv`, `.tsv`, with the texts in `column` and, if there is one, their pairs in `text_pair`), or of a folder, each
        file of which is a text. `vfm`: its name; `params`: for each input, as of `infer`. A file of requests as OpenAI's
        batches have them says for itself what its lines are for. `completion_window`: how long it may take, from `5m` to
        `7d`; what has not run by then fails with `batch_expired`. `metadata`: up to 16 texts by names, kept with it.

        Raises `InvalidInput` for what can be no batch, `TooLarge` for too large a file. What is wrong with a line is told in
        its place.

            batch = client.batches.submit("comments.csv", vfm="sentiment")
            for result in batch:
                print(result.line, result.error or result.output["label"])
        """
        self._loop.run(self._ask(lambda calls: calls.ready()))  # or refuse, before the inputs are drawn
        with prepare(inputs, vfm, params or {}, column) as source:
            given = dict(metadata) if metadata else None
            info = self._loop.run(begin(self._ask, source, completion_window, given))
        return Batch(BatchCore(self._ask, info), self._loop)

    def get(self, id: str) -> Batch:
        """Return the batch called `id` as it is now."""
        info = self._loop.run(self._ask(lambda calls: calls.show(id)))
        return Batch(BatchCore(self._ask, info), self._loop)

    def list(self, limit: int | None = None) -> list[Batch]:
        """List batches, newest first: all of them, or the first `limit`."""
        return [
            Batch(BatchCore(self._ask, info), self._loop)
            for info in self._loop.run(all_pages(self._ask, BatchCalls.page, limit))
        ]
