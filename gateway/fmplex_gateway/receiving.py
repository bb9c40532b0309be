"""Receiving bodies: with limits of size and time, and in bounded memory however many come at once."""

from __future__ import annotations

import asyncio
import mmap
import tempfile
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import IO

from fastapi import Request
from starlette.requests import ClientDisconnect

from fmplex_broker.errors import TooLarge, TooSlow, Unavailable

# A body has to come at a thousand bytes a second: so many in each window of so many seconds, or what is left of it.
WINDOW_S, LEAST_BYTES = 10.0, 10_000
RECEIVED = "received_bytes"  # in the state of a request
_PART = 1 << 20  # so much of a body is held in memory, the rest in a file
# Threads of its own: those of the event loop may all wait for an artifact store that does not answer.
_disk = ThreadPoolExecutor(4, thread_name_prefix="bodies")


class ClientDisconnected(Exception):
    """The client disconnected; there is nobody to answer."""


class Body:
    """A body of `size` bytes, in memory or, if it is large, in a temporary file that goes with it."""

    def __init__(self) -> None:
        self.size = 0
        self._held = bytearray()
        self._file: IO[bytes] | None = None

    async def add(self, part: bytes) -> None:
        """Take the next part. Raises `Unavailable` when the disk does."""
        self.size += len(part)
        self._held += part
        if len(self._held) > _PART:
            await self._write_out()

    async def end(self) -> None:
        """Note that there is no more."""
        if self._file is not None:
            await self._write_out()

    async def _write_out(self) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(_disk, self._write)
        except OSError as e:
            raise Unavailable(f"the gateway has no room for the body ({e.strerror}); try again later") from e
        self._held = bytearray()

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (it is closed with the body)
        left = memoryview(self._held)
        while left:
            left = left[self._file.write(left) :]

    def view(self) -> memoryview:
        """Return the bytes. Those in a file take no memory of their own: the system reads them as they are looked at."""
        if self._file is None:
            return memoryview(self._held).toreadonly()
        return memoryview(mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ))

    def parts(self) -> Iterator[bytes | bytearray]:
        """Yield the bytes, a megabyte at a time. Blocks."""
        if self._file is None:
            yield self._held
            return
        self._file.seek(0)
        while part := self._file.read(_PART):
            yield part

    def close(self) -> None:
        """Delete the file; a view that is still looked at keeps it."""
        if self._file is not None:
            self._file.close()


@asynccontextmanager
async def received(request: Request, limit: int) -> AsyncGenerator[Body, None]:
    """Receive the whole body of a request, for as long as the context lasts.

    Raises `TooLarge` once it has more than `limit` bytes, `TooSlow` when it does not come, `Unavailable` when there is no room
    for it, `ClientDisconnected` if it is cut off.
    """
    body = Body()
    try:
        async for part in parts(request, limit):
            await body.add(part)
        await body.end()
        yield body
    finally:
        body.close()


async def parts(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """Yield the body of a request as it comes. How long it takes to use a part is not the client's time.

    Raises `TooLarge` once it has more than `limit` bytes, `TooSlow` when it does not come, `ClientDisconnected` if it is cut off.
    """
    _check_declared(request, limit)
    loop, stream = asyncio.get_running_loop(), request.stream()
    size = seen = 0
    left = WINDOW_S
    while True:
        begun = loop.time()
        try:
            async with asyncio.timeout(left):
                part = await anext(stream, None)
        except ClientDisconnect as e:
            raise ClientDisconnected from e
        except TimeoutError as e:
            raise TooSlow(
                f"only {size - seen} bytes of the body came in {WINDOW_S:g} s; send it at {LEAST_BYTES / WINDOW_S:g} bytes a "
                "second at least"
            ) from e
        if part is None:
            break
        left -= loop.time() - begun
        size += len(part)
        if size > limit:
            raise TooLarge(f"the body has more than {limit} bytes; split the call")
        if size - seen >= LEAST_BYTES:
            seen, left = size, WINDOW_S
        yield part
    request.scope["state"][RECEIVED] = size


def _check_declared(request: Request, limit: int) -> None:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body has {declared} bytes, at most {limit} are taken; split the call")
