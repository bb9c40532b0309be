"""From the bytes of a body to what they say. Pure; it runs in the gateway for small bodies and in a process beside it for large
ones (`reader.py`)."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fmplex_broker.errors import InvalidInput, TooLarge
from fmplex_broker.specs.schema import invalid
from fmplex_broker.wire.messages import unpackb

# What one body may hold. 2048 texts in token ids have about so many numbers; with parameters they are 4,096 objects and lists.
MOST_VALUES, MOST_CONTAINERS = 1 << 20, 1 << 14
B = TypeVar("B", bound=BaseModel)


def decode(raw: bytes | bytearray, *, msgpack: bool) -> dict[str, Any]:
    """Decode a body, which is an object, from JSON or msgpack. Raises `InvalidInput`."""
    try:
        value = unpackb(bytes(raw)) if msgpack else json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise InvalidInput(f"the body cannot be read: {e}; send valid JSON, or msgpack with its content type") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"the body must be an object, not {type(value).__name__}")
    return value


def check_count(value: dict[str, Any]) -> None:
    """Check that a body is made of few enough values for all others to wait while it is looked at. Raises `TooLarge`."""
    values, containers = 0, 0
    waiting: list[Any] = [value]
    while waiting:
        container = waiting.pop()
        values += len(container)
        if values > MOST_VALUES:
            raise TooLarge(f"the body is made of more than {MOST_VALUES} values; split the call")
        inside = container.values() if isinstance(container, dict) else container
        waiting += [v for v in inside if isinstance(v, dict | list)]
        containers += 1
        if containers + len(waiting) > MOST_CONTAINERS:
            raise TooLarge(f"the body is made of more than {MOST_CONTAINERS} lists and objects; split the call")


def validate(kind: type[B], value: dict[str, Any]) -> B:
    """Read a decoded body as `kind`. Raises `InvalidInput` naming the field."""
    try:
        return kind.model_validate(value)
    except ValidationError as e:
        raise invalid(e) from None
