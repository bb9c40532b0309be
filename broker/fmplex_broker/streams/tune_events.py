"""Events of tuning jobs: entries of a stream, whose ids are theirs in another form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.tune_records import TuneEvent

_ID = re.compile(r"ftevent-([0-9a-f]{12})([0-9a-f]{8})")


def read_event(entry: bytes, fields: Mapping[bytes, bytes]) -> TuneEvent:
    """Read an event from its entry (`ms-number`) and the fields that scripts have written."""
    ms, _, number = entry.decode().partition("-")
    data: dict[str, Any] = json.loads(fields.get(b"data") or b"{}")
    values: dict[str, Any] = {
        "id": f"ftevent-{int(ms):012x}{int(number):08x}",
        "created_at": int(ms) // 1000,
        "level": fields[b"level"].decode(),
        "message": fields[b"message"].decode(),
        "kind": "metrics" if data else "message",
        "data": data,
    }
    return TuneEvent.model_validate(values)


def event_place(event: str) -> str:
    """Return the entry of an event's id. Raises `InvalidInput` for what no event can have."""
    found = _ID.fullmatch(event)
    if found is None:
        raise InvalidInput(f"{event[:64]!r} is not the id of an event; give the last one of a page", field="after")
    return f"{int(found[1], 16)}-{int(found[2], 16)}"
