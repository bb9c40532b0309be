"""The error tree. Every error carries its wire code and HTTP status, so one place can turn any of them into a reply.

FmplexError
├── InvalidInput (422)         the request is wrong; `field` names the part
│   ├── TextTooLong (422)      more tokens than the backbone takes, or than its cache of keys and values holds
│   └── PackageRejected (422)  a vFM package cannot be served; the message says what to change
├── Unauthorized (401)
├── UnknownVfm (404)
├── Conflict (409)             duplicate name, stale generation, idempotency key used for another request
├── TooLarge (413)             too many inputs or too many bytes
├── Busy (429)                 `retry_after` seconds says when to come back
│   ├── QueueFull
│   └── RateLimited
├── Cancelled (499)
├── JobFailed (500)            the job ran and failed; retrying gives the same
│   ├── NonFiniteOutput
│   └── Poisoned               its worker died every time it ran
├── StreamRestarted (500)      a text that was being told was generated again and came out differently; send it again
├── Unavailable (503)          nobody can answer now; retry later
│   ├── BrokerUnavailable
│   ├── VfmClosed              the vFM is draining or not serving yet
│   └── NoWorker               no live worker hosts the backbone
└── DeadlineExceeded (504)
"""

from __future__ import annotations

from typing import Any, ClassVar


class FmplexError(Exception):
    """Base of all errors that FMplex raises on purpose."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, field: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after

    def to_wire(self) -> dict[str, Any]:
        """The error as a plain mapping: `code`, `message` and, where they apply, `field` and `retry_after`."""
        wire: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.field is not None:
            wire["field"] = self.field
        if self.retry_after is not None:
            wire["retry_after"] = self.retry_after
        return wire


class InvalidInput(FmplexError):
    code, status = "invalid_input", 422


class TextTooLong(InvalidInput):
    code = "text_too_long"


class PackageRejected(InvalidInput):
    code = "package_rejected"


class Unauthorized(FmplexError):
    code, status = "unauthorized", 401


class UnknownVfm(FmplexError):
    code, status = "unknown_vfm", 404


class Conflict(FmplexError):
    code, status = "conflict", 409


class TooLarge(FmplexError):
    code, status = "too_large", 413


class Busy(FmplexError):
    code, status = "busy", 429


class QueueFull(Busy):
    code = "queue_full"


class RateLimited(Busy):
    code = "rate_limited"


class Cancelled(FmplexError):
    code, status = "cancelled", 499


class JobFailed(FmplexError):
    code, status = "job_failed", 500


class NonFiniteOutput(JobFailed):
    code = "non_finite_output"


class Poisoned(JobFailed):
    code = "poisoned"


class StreamRestarted(FmplexError):
    code = "stream_restarted"


class Unavailable(FmplexError):
    code, status = "unavailable", 503


class BrokerUnavailable(Unavailable):
    code = "broker_unavailable"


class VfmClosed(Unavailable):
    code = "vfm_closed"


class NoWorker(Unavailable):
    code = "no_worker"


class DeadlineExceeded(FmplexError):
    code, status = "deadline_exceeded", 504


def _tree(root: type[FmplexError]) -> dict[str, type[FmplexError]]:
    codes = {root.code: root}
    for child in root.__subclasses__():
        codes.update(_tree(child))
    return codes


_BY_CODE = _tree(FmplexError)


def from_wire(wire: dict[str, Any]) -> FmplexError:
    """Rebuild the typed error from its wire form; an unknown code becomes the base class, never a crash."""
    kind = _BY_CODE.get(str(wire.get("code")), FmplexError)
    return kind(str(wire.get("message", "unknown error")), field=wire.get("field"), retry_after=wire.get("retry_after"))
