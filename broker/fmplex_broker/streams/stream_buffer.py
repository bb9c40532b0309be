"""One growing text on its way to one reader: what its chunks bring is held until the reader asks for it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fmplex_broker.errors import StreamRestarted
from fmplex_broker.wire.messages import Reply
from fmplex_broker.wire.streaming import Delta, StreamReader, decode_chunk

log = logging.getLogger(__name__)


class StreamBuffer:
    """Buffer between the inbox and the reader of one text. Parts that come faster than they are asked for become one: however
    slow the reader is, at most one text is held."""

    def __init__(self) -> None:
        self._reader = StreamReader()
        self._unread: Delta | None = None
        self._restarted: StreamRestarted | None = None
        self._arrived = asyncio.Event()

    def feed(self, payload: bytes) -> None:
        """Take an encoded chunk. Raises nothing: other jobs' messages wait behind it."""
        if self._restarted is not None:
            return
        try:
            part = self._reader.read(decode_chunk(payload))
        except StreamRestarted as e:
            self._restarted = e
        except ValueError as e:  # from a worker of another version: a gap
            log.warning("a chunk cannot be read: %s", e)
            return
        else:
            if part is None:
                return
            self._unread = part if self._unread is None else self._unread + part
        self._arrived.set()

    async def next(self, reply: asyncio.Future[Reply], timeout_s: float) -> Delta | None:
        """Return what has come since the last call, as soon as something has; None when all of that was asked for and the reply
        is there, or after `timeout_s`. Raises `StreamRestarted`."""
        if self._unread is None and self._restarted is None and not reply.done():
            await self._wait(reply, timeout_s)
        if self._unread is not None:
            part, self._unread = self._unread, None
            return part
        if self._restarted is not None:
            raise self._restarted
        return None

    def rest(self, reply: Reply) -> Delta | None:
        """Return what the reply has beyond all that came before it. Raises `StreamRestarted`."""
        if reply.error is not None:
            return None
        output = reply.output
        return self._reader.end(output["text"], output["completion_tokens"], output.get("logprobs") or [])

    async def _wait(self, reply: asyncio.Future[Reply], timeout_s: float) -> None:
        self._arrived.clear()
        reply.add_done_callback(self._wake)
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            pass
        finally:
            reply.remove_done_callback(self._wake)

    def _wake(self, _: Any) -> None:
        self._arrived.set()
