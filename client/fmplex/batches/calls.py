"""Files and batches, as a gateway is asked for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

import httpx
from pydantic import ValidationError

from fmplex.batches.records import BatchInfo
from fmplex.connection import CONNECT_S, JSON, Connection
from fmplex_broker.errors import InvalidInput, Unavailable
from fmplex_broker.specs.files import UploadPurpose
from fmplex_broker.specs.schema import invalid

_BLOCK = 262_144  # bytes
_FILE_TIMES = httpx.Timeout(600.0, connect=CONNECT_S)  # a store may take its time for a large file
_BROKEN, _PAUSE_S = (
    5,
    0.5,
)  # times that a download may break off without a byte, and seconds until the next, ever longer


class BatchCalls:
    """What a gateway, at the other end of `connection`, does with files and batches. Methods raise `Unavailable` and the typed
    errors that it answers with."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ready(self) -> None:
        """Raise `Unavailable` if the client is closed."""
        self._connection.check_open()

    async def upload(self, file: BinaryIO, name: str, purpose: UploadPurpose = "batch") -> str:
        """Send a file, block by block, to be the input of a batch, or for another `purpose`; return its id. `file`: seekable,
        sent from its beginning."""
        size = file.seek(0, 2)
        file.seek(0)
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size), "Accept": JSON}
        query = urlencode({"purpose": purpose, "filename": name})
        answer = await self._connection.request(
            "POST", f"/v1/files?{query}", _blocks(file), headers=headers, times=_FILE_TIMES
        )
        try:
            return str(answer["id"])
        except (KeyError, TypeError) as e:
            raise self._connection.not_a_gateway(e) from e

    async def create(self, file_id: str, endpoint: str, window: str, metadata: dict[str, str] | None) -> BatchInfo:
        """Begin a batch with the lines of a file."""
        body: dict[str, Any] = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
        return self._info(await self._json("POST", "/v1/batches", body | ({"metadata": metadata} if metadata else {})))

    async def show(self, batch: str) -> BatchInfo:
        """Return a batch as it is now."""
        return self._info(await self._json("GET", _path(batch)))

    async def cancel(self, batch: str) -> BatchInfo:
        """Cancel a batch; return it."""
        return self._info(await self._json("POST", _path(batch) + "/cancel"))

    async def page(self, limit: int, after: str | None) -> tuple[list[BatchInfo], bool]:
        """List up to `limit` batches, newest first, from the one that follows `after`; and tell whether there are more."""
        query = urlencode({"limit": limit} | ({"after": after} if after else {}))
        answer = await self._json("GET", f"/v1/batches?{query}")
        try:
            return [self._info(batch) for batch in answer["data"]], bool(answer["has_more"])
        except (KeyError, TypeError) as e:
            raise self._connection.not_a_gateway(e) from e

    async def download(self, file_id: str, into: BinaryIO) -> None:
        """Write the content of a file to an empty one, `into`. What breaks off is gone on with where it was."""
        path, broken = f"/v1/files/{quote(file_id, safe='')}/content", 0
        while True:
            before = into.tell()
            headers = {
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                **({"Range": f"bytes={before}-"} if before else {}),
            }
            try:
                async with self._connection.stream("GET", path, headers=headers, times=_FILE_TIMES) as response:
                    if response.status_code != httpx.codes.PARTIAL_CONTENT:
                        into.truncate(into.seek(0))
                    async for block in response.aiter_raw():
                        into.write(block)
                return
            except Unavailable:
                broken = 0 if into.tell() > before else broken + 1
                if broken == _BROKEN:
                    raise
                await asyncio.sleep(_PAUSE_S * broken)

    async def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        return await self._connection.request(method, path, content, headers={"Content-Type": JSON, "Accept": JSON})

    def _info(self, answer: Any) -> BatchInfo:
        try:
            return BatchInfo.read(answer)
        except ValidationError as e:
            raise self._connection.not_a_gateway(invalid(e)) from e


async def _blocks(file: BinaryIO) -> AsyncIterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _path(batch: str) -> str:
    if not isinstance(batch, str) or not batch:
        raise InvalidInput(f"a batch's id is a text like batch_…, not {batch!r}", field="id")
    return f"/v1/batches/{quote(batch, safe='')}"
