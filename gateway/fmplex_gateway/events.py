"""Answers that are sent as they come: server-sent events, and the streams of many jobs as one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fmplex_broker.errors import BrokerUnavailable, FmplexError
from fmplex_broker.streams.queue_client import Pending, cancel_all
from fmplex_broker.wire.messages import Reply
from fmplex_broker.wire.streaming import Delta
from fmplex_gateway.calls import unless_disconnected
from fmplex_gateway.dialect import error_body
from fmplex_gateway.receiving import ClientDisconnected
from fmplex_gateway.wire import dump, error_response

log = logging.getLogger(__name__)
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter: a proxy must not gather the events


class EventStream(Response):
    """A response that sends `values` as server-sent events, then `[DONE]`. Nothing is sent before the first value is there: until
    then an error is an ordinary reply; later it is the last event.

    The values are closed in the end, whatever happens; if the client disconnects, as soon as it does. A client that reads slowly
    holds up the values: the server's buffer is 64 KiB.
    """

    media_type = "text/event-stream"

    def __init__(self, values: AsyncGenerator[dict[str, Any], None]) -> None:
        self._values = values
        self._begun = False
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI asks."""
        async with aclosing(self._values):
            try:
                last = await unless_disconnected(receive, self._send_values(send, scope["path"]))
            except ClientDisconnected:
                if not self._begun:
                    await Response(status_code=499)(scope, receive, send)
                return
        if self._begun:
            await send({"type": "http.response.body", "body": last, "more_body": False})
        else:
            assert isinstance(last, FmplexError)
            await error_response(last, scope["path"])(scope, receive, send)

    async def _send_values(self, send: Send, path: str) -> bytes | FmplexError:
        """Send the values; return the last event, or the error if there was one before the first event."""
        try:
            async for value in self._values:
                await self._begin(send)
                await send({"type": "http.response.body", "body": _event(dump(value)), "more_body": True})
        except FmplexError as e:
            return _event(dump(error_body(e, path))) if self._begun else e
        except Exception as e:
            log.exception("a stream failed")
            failed = FmplexError("the gateway failed; its log says how")
            failed.__cause__ = e
            return _event(dump(error_body(failed, path))) if self._begun else failed
        await self._begin(send)
        return _event("[DONE]")

    async def _begin(self, send: Send) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


async def follow(pending: Sequence[Pending]) -> AsyncGenerator[tuple[int, Delta | Reply], None]:
    """Yield what comes of jobs that stream, as it comes, each with the job's position in `pending`; of every job its reply (which
    may carry an error) comes last. Raises what reading one of them raises. When closed before the end, or on an error, the others
    are cancelled.

    What is not fetched is not gathered here: it waits in each job's `Pending`, which holds one text at most.
    """
    arrived: asyncio.Queue[tuple[int, Delta | Reply | Exception]] = asyncio.Queue(1)
    readers = [asyncio.create_task(_read(i, p, arrived)) for i, p in enumerate(pending)]
    try:
        left = len(pending)
        while left:
            i, got = await arrived.get()
            if isinstance(got, Exception):
                raise got
            left -= isinstance(got, Reply)
            yield i, got
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        with suppress(BrokerUnavailable):
            await cancel_all(pending)


async def _read(i: int, pending: Pending, arrived: asyncio.Queue[tuple[int, Delta | Reply | Exception]]) -> None:
    try:
        async for delta in pending.stream():
            await arrived.put((i, delta))
        await arrived.put((i, await pending.reply()))
    except Exception as e:
        await arrived.put((i, e))
