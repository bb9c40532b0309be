"""The record of a batch: what was ordered, its state, how far it is. Pure.

```
validating ──> in_progress ──> finalizing ──> completed | expired | failed
     │              │
     └──────────────┴──> cancelling ──> cancelled
```

From every state that is no end a batch may go to `failed`: its file is no batch, or its answers were lost.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from fmplex_broker.specs.files import LEAST_LIFE_S, LIFE_S, MOST_LIFE_S, FileId
from fmplex_broker.specs.schema import Spec, at_most

Status: TypeAlias = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
STATUSES: tuple[Status, ...] = get_args(Status)
NEXT: Mapping[Status, tuple[Status, ...]] = {
    "validating": ("in_progress", "failed", "cancelling"),
    "in_progress": ("finalizing", "failed", "cancelling"),
    "finalizing": ("completed", "expired", "failed"),
    "cancelling": ("cancelled", "failed"),
}
ENDED = frozenset(status for status in STATUSES if status not in NEXT)

LEAST_WINDOW_S, MOST_WINDOW_S = 5 * 60, 7 * 86_400
MOST_PAIRS, MOST_KEY, MOST_VALUE = 16, 64, 512
_WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_ID = re.compile(r"batch_[0-9a-f]{24}")
# Fields of a batch's hash that are numbers or JSON; those of neither are texts.
_NUMBERS = (
    "created_at", "expires_at", *(f"{status}_at" for status in STATUSES if status != "validating"),
    "total", "completed", "failed", "takes",
)  # fmt: skip
_JSON = ("versions", "errors")


def window_s(window: str) -> int:
    """Return the seconds of a completion window such as `24h`, `90m` or `7d`. Raises `ValueError`, in words for who wrote it."""
    found = _WINDOW.fullmatch(window)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not LEAST_WINDOW_S <= seconds <= MOST_WINDOW_S:
        raise ValueError(
            f"completion_window {window[:32]!r}: give a whole number and a unit, from 5m to 7d: 24h, 90m, 3600s, 2d"
        )
    return seconds


def _checked_window(window: str) -> str:
    try:
        window_s(window)
    except ValueError as e:
        raise PydanticCustomError("window", "{words}", {"words": str(e)}) from None
    return window


Window = Annotated[str, AfterValidator(_checked_window)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=MOST_KEY)], Annotated[str, StringConstraints(max_length=MOST_VALUE)]
    ],
    at_most(MOST_PAIRS),
]


class Order(Spec):
    """What was ordered, which never changes. `owner`, `models`: the name of the key that ordered it, and the vFMs that it may
    use; `output_life_s`: how long the files that come of it are kept."""

    id: str
    owner: str
    models: tuple[str, ...] = ("*",)
    endpoint: str
    input_file_id: FileId
    completion_window: Window = "24h"
    metadata: Metadata | None = None
    output_life_s: int = Field(default=LIFE_S, ge=LEAST_LIFE_S, le=MOST_LIFE_S)


class BatchError(Spec):
    """Why a whole batch failed; `line`: which line of its file is to blame, from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchRecord(Spec):
    """A batch as it is. Times are seconds since 1970; `versions`: of vFMs, all that have answered; `ending`: the state in which
    it will end; `takes`: how often it was taken since it last came on."""

    order: Order
    status: Status
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    versions: tuple[str, ...] = ()
    errors: tuple[BatchError, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    ending: Status = "completed"
    takes: int = 0

    @classmethod
    def parse(cls, fields: Mapping[str, bytes | None]) -> BatchRecord:
        """Read a batch from its fields in the broker; those that are not there have not come to be."""
        values: dict[str, Any] = {}
        for name, raw in fields.items():
            if raw is None:
                continue
            if name == "order":
                values[name] = Order.model_validate_json(raw)
            elif name in _JSON:
                values[name] = json.loads(raw)
            else:
                values[name] = int(raw) if name in _NUMBERS else raw.decode()
        return cls.model_validate(values)

    @property
    def made_at(self) -> int:
        """When its files come to be, in seconds since 1970: the same whoever makes them, and however often."""
        return self.finalizing_at or self.cancelling_at or self.created_at

    def shown(self) -> dict[str, Any]:
        """Return the batch in OpenAI's shape, and its `versions`."""
        order = self.order
        errors = [error.model_dump() for error in self.errors]
        return {
            "id": order.id,
            "object": "batch",
            "endpoint": order.endpoint,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": order.input_file_id,
            "completion_window": order.completion_window,
            **self.model_dump(include={"status", "output_file_id", "error_file_id", "created_at", "expires_at"}),
            **self.model_dump(include={f"{status}_at" for status in STATUSES}),
            "request_counts": self.model_dump(include={"total", "completed", "failed"}),
            "metadata": order.metadata,
            "versions": list(self.versions),
        }


FIELDS = tuple(BatchRecord.model_fields)  # of its hash


def new_batch_id() -> str:
    """Make the id of a new batch. Ids sort by the time when they were made."""
    return f"{_prefix(time.time())}{secrets.token_hex(6)}"


def is_batch_id(text: str) -> bool:
    """Tell whether a text could be the id of a batch."""
    return _ID.fullmatch(text) is not None


def oldest_id(made_at: float) -> str:
    """Return what comes before every id that was made then or later, and after all others (seconds since 1970)."""
    return _prefix(made_at)


def _prefix(seconds: float) -> str:
    return f"batch_{int(seconds * 1000):012x}"
