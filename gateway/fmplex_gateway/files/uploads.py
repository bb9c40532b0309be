"""Uploads: a file goes to the store as it comes, a megabyte in memory at most."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import IO

from fastapi import Request

from fmplex_broker.errors import FmplexError, TooLarge
from fmplex_broker.packages.files import FileStore
from fmplex_broker.specs.files import FileRecord, new_file_id
from fmplex_gateway.access import principal_of
from fmplex_gateway.files.form import MOST_BESIDE, incoming
from fmplex_gateway.files.keeping import Files
from fmplex_gateway.files.off_loop import StoreCalls
from fmplex_gateway.receiving import parts

_PART = 1 << 20  # so much is written at a time


class StoreWriter:
    """A file of the store that is being written off the event loop. `size`: bytes so far."""

    def __init__(self, file: IO[bytes], calls: StoreCalls) -> None:
        self.size = 0
        self._file = file
        self._calls = calls
        self._held = bytearray()

    async def write(self, part: bytes) -> None:
        """Take the next bytes. Raises `StoreUnavailable`."""
        self.size += len(part)
        self._held += part
        if len(self._held) >= _PART:
            await self.flush()

    async def flush(self) -> None:
        """Write what is held. Raises `StoreUnavailable`."""
        held, self._held = self._held, bytearray()
        await self._calls(self._file.write, held)


class _Abandoned(Exception):
    """The file is not to be kept."""


@asynccontextmanager
async def writing(store: FileStore, name: str) -> AsyncGenerator[StoreWriter, None]:
    """Write a file of the store off the event loop. It is there after a clean end; after any other nothing is, once the store
    answers. Raises `StoreUnavailable`."""
    calls, stack = StoreCalls(), ExitStack()

    def abandon() -> None:
        with suppress(_Abandoned, FmplexError), stack:
            raise _Abandoned

    try:
        writer = StoreWriter(await calls(stack.enter_context, store.writing(name)), calls)
        yield writer
        await writer.flush()
        await calls(stack.close)
    except BaseException:
        await calls.finish(abandon)
        raise


async def upload(request: Request) -> FileRecord:
    """Receive the file of a request, and store it for whoever sends it; return its record.

    Raises `InvalidInput` for what is wrong with the form or its fields, `TooLarge`, `TooSlow`, `StoreUnavailable` and, if it is
    cut off, `ClientDisconnected`: nothing is kept then.
    """
    files: Files = request.app.state.files
    limit: int = request.app.state.spec.max_file_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit + MOST_BESIDE:
        raise _too_large(limit)
    upload = incoming(request.headers.get("content-type", ""), request.query_params)
    file = new_file_id()
    async with writing(files.store, file) as writer:
        async for part in parts(request, limit + MOST_BESIDE):
            for content in upload.feed(part):
                if writer.size + len(content) > limit:
                    raise _too_large(limit)
                await writer.write(content)
        fields = upload.end()
    now = int(time.time())
    record = FileRecord(
        id=file,
        owner=principal_of(request).name,
        bytes=writer.size,
        created_at=now,
        expires_at=now + fields.seconds,
        filename=upload.filename,
        purpose=fields.purpose,
    )
    try:
        await files.list.add(record)
    except FmplexError:
        await StoreCalls()(files.store.delete, file)
        raise
    return record


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"file: at most {limit} bytes are taken (gateway.max_file_bytes); split it", field="file")
