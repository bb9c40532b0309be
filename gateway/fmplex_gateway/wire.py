"""Reading and writing HTTP bodies: JSON or msgpack in, JSON or msgpack out, and errors as replies."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from fmplex_broker.errors import DeadlineExceeded, FmplexError, JobFailed
from fmplex_broker.wire.messages import packb
from fmplex_broker.wire.tensors import Tensor
from fmplex_gateway.access import principal_of
from fmplex_gateway.calls import unless_disconnected
from fmplex_gateway.dialect import error_body, error_status
from fmplex_gateway.parsing import decode, validate
from fmplex_gateway.reader import Reader
from fmplex_gateway.receiving import received

MSGPACK = "application/msgpack"
_SMALL = 65_536  # bytes of a body that is read at once: the worst of them take 10 ms
_TURN = 16  # values encoded before others get a turn
B = TypeVar("B", bound=BaseModel)


async def parse_body(request: Request, kind: type[B], limit: int) -> B:
    """Read the body as `kind`; a large one beside the event loop, so that others are answered meanwhile.

    Raises `InvalidInput` naming the field, `TooLarge`, `TooSlow` or `ClientDisconnected`.
    """
    msgpack = _is_msgpack(request.headers.get("content-type", ""))
    async with received(request, limit) as body:
        if body.size <= _SMALL:
            return validate(kind, decode(bytes(body.view()), msgpack=msgpack))
        reader: Reader = request.app.state.reader
        reading = reader.read(kind, body, principal_of(request).name, msgpack=msgpack)
        return await unless_disconnected(request.receive, reading)


def _is_msgpack(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in (MSGPACK, "application/x-msgpack")


async def respond(request: Request, body: dict[str, Any]) -> Response:
    """Answer with a body, as `answer` does."""
    lists = {key: value for key, value in body.items() if isinstance(value, list)}
    return await answer(request, {key: value for key, value in body.items() if key not in lists}, lists)


async def answer(request: Request, envelope: dict[str, Any], lists: dict[str, list[Any]]) -> Response:
    """Answer with `envelope` and in it `lists` by their keys: msgpack if the client asks for it (tensors stay tensors), else JSON
    (tensors become lists). Thousands of values take their time: other requests get their turns in between."""
    if _is_msgpack(request.headers.get("accept", "")):
        return Response(packb(envelope | lists), media_type=MSGPACK)
    fields = [dump(envelope)[1:-1]]
    for key, values in lists.items():
        fields.append(f"{dump(key)}:[{await _dump_in_turns(values)}]")
    return Response(f"{{{','.join(fields)}}}", media_type="application/json")


async def _dump_in_turns(values: list[Any]) -> str:
    parts = []
    for i, value in enumerate(values, 1):
        parts.append(dump(value))
        if i % _TURN == 0:
            await asyncio.sleep(0)
    return ",".join(parts)


def json_response(value: Any, status: int = 200) -> Response:
    """Answer with a value as JSON."""
    return Response(dump(value), status, media_type="application/json")


def dump(value: Any) -> str:
    """Write a value as JSON; tensors become lists."""
    return json.dumps(value, default=_to_plain, allow_nan=False, separators=(",", ":"))


def _to_plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def error_response(error: FmplexError, path: str) -> Response:
    """Answer a request for a path with a typed error: its status, body and headers."""
    response = json_response(error_body(error, path), error_status(error, path))
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if isinstance(error, DeadlineExceeded | JobFailed):
        # The openai package would send it twice more: as long again, with the same end.
        response.headers["x-should-retry"] = "false"
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
