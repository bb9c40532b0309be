"""A batch as a gateway shows it, and what came of each of its lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from fmplex_broker.errors import FmplexError
from fmplex_broker.specs.schema import Spec

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


class BatchCounts(Spec):
    """How many lines a batch has in `total`, how many of them are `completed`, with an answer, and how many `failed`."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchFault(Spec):
    """Why a batch failed as a whole: the `code` and `message`, the `line` of its file, and the `param` at fault; None where
    there is none."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class _Faults(Spec):
    data: tuple[BatchFault, ...] = ()


class BatchInfo(Spec):
    """A batch as `GET /v1/batches/{id}` shows it.

    `id`; `status`: validating, in_progress, finalizing, and at its end completed, failed (its file could not be taken),
    expired, or cancelling and cancelled; `endpoint` of its lines; `request_counts`; `metadata`; `versions` of vFMs that
    answered; `errors`: why it failed as a whole, as `faults` lists it. `completion_window`: the time it has, as it was given.
    Its files: `input_file_id`, `output_file_id` (answers) and `error_file_id` (lines without one), None while there is none.

    When it reached each state, in seconds since 1970, None if it has not: `created_at`, `in_progress_at`, `finalizing_at`,
    `completed_at`, `failed_at`, `expired_at`, `cancelling_at`, `cancelled_at`; and when it will expire, `expires_at`.
    """

    id: str
    status: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    request_counts: BatchCounts = Field(default_factory=BatchCounts)
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: _Faults | None = None
    metadata: dict[str, str] | None = None
    versions: tuple[str, ...] = ()
    expires_at: int | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @classmethod
    def read(cls, wire: object) -> BatchInfo:
        """Read a batch as it travels, `wire`; keys that only a newer gateway knows are left out. Raises `ValidationError`."""
        return cls.model_validate(wire, extra="ignore")

    @property
    def faults(self) -> tuple[BatchFault, ...]:
        """Why it failed as a whole; empty if it has not."""
        return self.errors.data if self.errors is not None else ()

    @property
    def ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.status in ENDED

    def plain(self) -> dict[str, Any]:
        """Return the batch in plain values, as it travels."""
        return self.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What came of one line of a batch.

    `line`: its number in the input file, from 1 on; of inputs that were given as a list, their position. `custom_id`: its
    name, None if it could not be read. `output`: of `infer`, as `Result.output`, with lists for tensors (several inputs in
    one line: a list of them); of OpenAI's endpoints the whole answer; None if there is an `error`, whose word in the file is
    `code`. `vfm` and `version` that answered; `units`: how much work it was (tokens).
    """

    line: int
    custom_id: str | None
    output: Any = None
    error: FmplexError | None = None
    code: str | None = None
    vfm: str | None = None
    version: str | None = None
    units: int | None = None
