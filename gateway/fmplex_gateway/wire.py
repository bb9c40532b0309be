"""Reading and writing HTTP bodies: JSON or msgpack in, JSON or msgpack out, and errors as replies."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fmplex_broker.errors import DeadlineExceeded, FmplexError, InvalidInput, JobFailed, TooLarge
from fmplex_broker.specs.schema import invalid
from fmplex_broker.wire.messages import packb, unpackb
from fmplex_broker.wire.tensors import Tensor

MSGPACK = "application/msgpack"
_TURN = 16  # values encoded before others get a turn
B = TypeVar("B", bound=BaseModel)


class ClientDisconnected(Exception):
    """The client disconnected; there is nobody to answer."""


async def read_body(request: Request, limit: int) -> bytes:
    """Read the whole body, in bytes. Raises `TooLarge` once it has more than `limit`, `ClientDisconnected` if it is cut off."""
    declared = request.headers.get("content-length", "")
    parts, size = [], int(declared) if declared.isdigit() else 0
    if size > limit:
        raise TooLarge(f"the body has {size} bytes, at most {limit} are taken; split the call")
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise TooLarge(f"the body has more than {limit} bytes; split the call")
            parts.append(part)
    except ClientDisconnect as e:
        raise ClientDisconnected from e
    return b"".join(parts)


async def parse_body(request: Request, kind: type[B], limit: int) -> B:
    """Read the body as `kind`. Raises `InvalidInput` naming the field, `TooLarge` or `ClientDisconnected`."""
    raw = await read_body(request, limit)
    try:
        value = unpackb(raw) if _is_msgpack(request.headers.get("content-type", "")) else json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise InvalidInput(f"the body cannot be read: {e}; send valid JSON, or msgpack with its content type") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"the body must be an object, not {type(value).__name__}")
    try:
        return kind.model_validate(value)
    except ValidationError as e:
        raise invalid(e) from None


def _is_msgpack(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in (MSGPACK, "application/x-msgpack")


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


def error_body(error: FmplexError) -> dict[str, Any]:
    """Return the body of an error reply: OpenAI's, with `field` and `retry_after` where they apply."""
    wire = error.to_wire()
    return {"error": {**wire, "type": error.code, "param": wire.get("field")}}


def error_response(error: FmplexError) -> Response:
    """Answer with a typed error: its status, body and headers."""
    response = json_response(error_body(error), error.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if isinstance(error, DeadlineExceeded | JobFailed):
        # The openai package would send it twice more: as long again, with the same end.
        response.headers["x-should-retry"] = "false"
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
