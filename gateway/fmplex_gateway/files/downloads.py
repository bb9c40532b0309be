"""Downloads: the bytes of a file, or a range of them, as fast as the client reads."""

from __future__ import annotations

import re
from typing import IO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fmplex_broker.errors import InvalidInput, StoreUnavailable
from fmplex_broker.packages.files import FileStore
from fmplex_broker.specs.files import FileRecord
from fmplex_gateway.calls import unless_disconnected
from fmplex_gateway.files.off_loop import StoreCalls
from fmplex_gateway.receiving import ClientDisconnected
from fmplex_gateway.wire import error_response

_PART = 1 << 18  # so much is read at a time
_RANGE = re.compile(r"bytes=(?=[0-9-]*[0-9])([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


class _NotSatisfiable(InvalidInput):
    code, status = "range_not_satisfiable", 416


class Content(Response):
    """A response with the bytes of an opened file, or those in `wanted`; it closes the file."""

    def __init__(self, file: IO[bytes], calls: StoreCalls, record: FileRecord, wanted: range | None) -> None:
        self._file = file
        self._calls = calls
        self._size = record.bytes if wanted is None else len(wanted)
        self.status_code = 200 if wanted is None else 206
        self.background = None
        self.init_headers(
            {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(self._size),
                "Content-Disposition": f"attachment; filename*=utf-8''{quote(record.filename, safe='')}",
                "Accept-Ranges": "bytes",
                "ETag": _tag(record),
            }
        )
        if wanted is not None:
            self.headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{record.bytes}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI asks. Raises `StoreUnavailable` if there are fewer bytes; the connection is cut off then."""
        try:
            await unless_disconnected(receive, self._send(scope, receive, send))
        except ClientDisconnected:
            return
        finally:
            await self._calls.finish(self._file.close)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self._size
        part = await self._next(left)  # before the response begins: until then an error is an ordinary reply
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while left := left - len(part):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            part = await self._next(left)
        await send({"type": "http.response.body", "body": part, "more_body": False})

    async def _next(self, left: int) -> bytes:
        if not left:
            return b""
        if not (part := await self._calls(self._file.read, min(left, _PART))):
            raise StoreUnavailable(
                "the artifact store has fewer bytes of this file than were put there; upload it again"
            )
        return part


async def content(request: Request, store: FileStore, record: FileRecord) -> Response:
    """Answer a request for the bytes of a file, or for one range of them. Raises `UnknownFile` if the store has lost it,
    `StoreUnavailable`."""
    try:
        wanted = _wanted(request, record)
    except _NotSatisfiable as e:
        response = error_response(e, request.url.path)
        response.headers["Content-Range"] = f"bytes */{record.bytes}"
        return response
    calls = StoreCalls()
    file = await calls(store.open, record.id)
    try:
        await calls(file.seek, 0 if wanted is None else wanted.start)
    except BaseException:
        await calls.finish(file.close)
        raise
    return Content(file, calls, record, wanted)


def _tag(record: FileRecord) -> str:
    return f'"{record.id}"'  # a file never changes


def _wanted(request: Request, record: FileRecord) -> range | None:
    """Return which bytes are wanted; None for everything: if no range is asked for, and if it is several, or none that can be
    read (RFC 9110, 14.2). Raises `_NotSatisfiable` if the file has none of them."""
    found = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if found is None or request.headers.get("if-range", _tag(record)) != _tag(record):
        return None
    first, last = found.groups()
    if not first:
        start, stop = record.bytes - min(int(last), record.bytes), record.bytes
    else:
        start, stop = int(first), min(record.bytes, int(last) + 1 if last else record.bytes)
        if last and int(last) < start:
            return None
    if start >= stop:
        raise _NotSatisfiable(f"range: the file has {record.bytes} bytes; ask for some of those", field="range")
    return range(start, stop)
