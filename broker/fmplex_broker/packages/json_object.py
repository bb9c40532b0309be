"""JSON that comes with a package, read so that every reader finds the same in it. Pure."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

_DEEPEST = 16  # levels; PEFT's configs have three


def read_object(data: bytes, most: int) -> dict[str, Any]:
    """Read a JSON object of at most `most` bytes.

    Raises `ValueError` that says what is wrong: too many bytes, not UTF-8, no JSON, a name twice, more than 16 levels. Numbers
    are what Python makes of them, infinite ones too: whoever knows what they are for checks them.
    """
    if len(data) > most:
        raise ValueError(f"it has {len(data)} bytes, at most {most} are taken")
    try:
        value = json.loads(str(data, "utf-8"), object_pairs_hook=_without_twins)
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise ValueError(f"it must be an object, not {type(value).__name__}")
    _check_depth(value)
    return value


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        [(twin, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it holds {twin[:64]!r} twice")
    return found


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part
            for whole in level
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {_DEEPEST} levels deep")
