"""The error tree. Every error carries its wire code and HTTP status, so one place can turn any of them into a reply.

FmplexError
├── InvalidInput (422)         the request is wrong; `field` names the part
│   ├── TextTooLong (422)      more tokens than the backbone takes, or than its cache of keys and values holds
│   └── PackageRejected (422)  a vFM package cannot be served; the message says what to change
├── Unauthorized (401)         no API key, or one that is not known
├── Forbidden (403)            the API key may not do this; the message says what it lacks
├── UnknownVfm (404)
├── UnknownFile (404)
├── UnknownBatch (404)
├── UnknownTune (404)
├── Conflict (409)             duplicate name, stale generation, idempotency key used for another request
│   └── StaleVersion           the version was made for other weights than the fleet hosts; deploy the package again
├── TooSlow (408)              the request did not come in time
├── TooLarge (413)             too many inputs or too many bytes
├── Busy (429)                 `retry_after` seconds says when to come back
│   ├── QueueFull
│   └── RateLimited
├── Cancelled (499)
├── JobFailed (500)            the job ran and failed; retrying gives the same
│   ├── NonFiniteOutput
│   └── Poisoned               its worker died every time it ran
├── BrokerFault (500)          the broker found a mistake in what it was asked: a bug, or another program's data
├── StreamRestarted (500)      a text that was being streamed was generated again and came out differently; send it again
├── Unavailable (503)          nobody can answer now; retry later
│   ├── BrokerUnavailable      the broker does not answer, or refuses
│   │   └── BrokerMisconfigured  it will refuse until somebody changes its configuration, or its URL
│   ├── StoreUnavailable       the artifact store does not answer, refuses, or is full
│   ├── VfmClosed              the vFM is draining or not serving yet
│   └── NoWorker               no live worker hosts the backbone
└── DeadlineExceeded (504)
"""

from __future__ import annotations

from typing import Any, ClassVar

# Characters. Errors quote what they refuse, which is as long as its author likes; and they are logged, stored and sent.
MAX_MESSAGE, MAX_FIELD = 2000, 256
_LAST = 400  # of a message that is too long: what to do stands there


class FmplexError(Exception):
    """Base of all errors that FMplex raises on purpose, each with a `code` and the HTTP `status` that stands for it.

    `message`: what is wrong and what to do; `field`: the part of the request at fault, None if it is none; `retry_after`: seconds
    after which to try again, None where that is not known. A message of more than 2,000 characters loses its middle, a field of
    more than 256 its end; what is no Unicode becomes question marks.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, field: str | None = None, retry_after: float | None = None) -> None:
        self.message = _shortened(message)
        super().__init__(self.message)
        self.field = None if field is None else _sendable(field[:MAX_FIELD])
        self.retry_after = retry_after

    def to_wire(self) -> dict[str, Any]:
        """Return the error as a plain mapping: `code`, `message` and, where they apply, `field` and `retry_after`."""
        wire: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.field is not None:
            wire["field"] = self.field
        if self.retry_after is not None:
            wire["retry_after"] = self.retry_after
        return wire


def _shortened(message: str) -> str:
    if len(message) > MAX_MESSAGE:
        cut = f" … ({len(message)} characters) … "
        message = message[: MAX_MESSAGE - _LAST - len(cut)] + cut + message[-_LAST:]
    return _sendable(message)


def _sendable(text: str) -> str:
    """Return a text that every encoding on the way takes: half a surrogate pair is no Unicode."""
    return text.encode(errors="replace").decode()


class InvalidInput(FmplexError):
    """The request is wrong; `field` names the part."""

    code, status = "invalid_input", 422


class TextTooLong(InvalidInput):
    """The text has more tokens than the backbone takes, or than its cache of keys and values holds."""

    code = "text_too_long"

    @classmethod
    def over(cls, most: int, said: str, *, field: str) -> TextTooLong:
        """Make the error of a text that has more than `most` tokens, in OpenAI's words: programs look for them, to fall back on a
        model that takes more. `said`: how much it is, and what to do; `field`: of the text."""
        return cls(f"This model's maximum context length is {most} tokens. However, {said}", field=field)


class PackageRejected(InvalidInput):
    """The vFM package cannot be served; the message says what to change."""

    code = "package_rejected"


class Unauthorized(FmplexError):
    """The API key is missing or not known."""

    code, status = "unauthorized", 401


class Forbidden(FmplexError):
    """The API key may not do this; the message says what it lacks."""

    code, status = "forbidden", 403


class UnknownVfm(FmplexError):
    """No vFM has this name."""

    code, status = "unknown_vfm", 404


class UnknownFile(FmplexError):
    """No file has this id, or not one of whoever asks."""

    code, status = "unknown_file", 404

    @classmethod
    def of(cls, file: str) -> UnknownFile:
        """Make the error of a `file`, an id, that there is none of, in OpenAI's words."""
        return cls(f"No such File object: {file[:64]}; GET /v1/files lists those there are", field="id")


class UnknownBatch(FmplexError):
    """No batch has this id, or not one of whoever asks."""

    code, status = "unknown_batch", 404

    @classmethod
    def of(cls, batch: str) -> UnknownBatch:
        """Make the error of an id, `batch`, that no batch has, in OpenAI's words."""
        return cls(f"No batch found with id {batch[:64]!r}; GET /v1/batches lists those there are", field="id")


class UnknownTune(FmplexError):
    """No tuning job has this id, or not one of whoever asks."""

    code, status = "unknown_tune", 404

    @classmethod
    def of(cls, job: str) -> UnknownTune:
        """Make the error of an id, `job`, that no tuning job has."""
        return cls(f"No such fine-tuning job: {job[:64]!r}; GET /v1/fine_tuning/jobs lists those there are", field="id")


class Conflict(FmplexError):
    """The name is taken, the generation is stale, or the idempotency key was used for another request."""

    code, status = "conflict", 409


class StaleVersion(Conflict):
    """The version was made for other weights than the fleet hosts now; deploy its package again."""

    code = "stale_version"


class TooSlow(FmplexError):
    """The request did not come in time: its body was sent too slowly."""

    code, status = "too_slow", 408


class TooLarge(FmplexError):
    """Too many inputs or too many bytes."""

    code, status = "too_large", 413


class Busy(FmplexError):
    """The vFM takes no more now; `retry_after` says in how many seconds to come back."""

    code, status = "busy", 429


class QueueFull(Busy):
    """The vFM's queue is full."""

    code = "queue_full"


class RateLimited(Busy):
    """The vFM is over its rate."""

    code = "rate_limited"


class Cancelled(FmplexError):
    """The job was cancelled before it was answered."""

    code, status = "cancelled", 499


class JobFailed(FmplexError):
    """The job ran and failed; retrying gives the same."""

    code, status = "job_failed", 500


class NonFiniteOutput(JobFailed):
    """The output holds NaN or infinity."""

    code = "non_finite_output"


class Poisoned(JobFailed):
    """The job's worker died every time it ran."""

    code = "poisoned"


class BrokerFault(FmplexError):
    """The broker found a mistake in what it was asked: a bug of FMplex, or data of another program under the same keys."""

    code = "broker_fault"


class StreamRestarted(FmplexError):
    """A text that was being streamed was generated again and came out differently; send the request again."""

    code = "stream_restarted"


class Unavailable(FmplexError):
    """Nobody can answer now; retry later."""

    code, status = "unavailable", 503


class BrokerUnavailable(Unavailable):
    """The broker does not answer, or refuses."""

    code = "broker_unavailable"


class BrokerMisconfigured(BrokerUnavailable):
    """The broker goes on refusing until somebody changes its configuration, or the URL; the message says what."""

    code = "broker_misconfigured"


class StoreUnavailable(Unavailable):
    """The artifact store does not answer, refuses, or is full."""

    code = "store_unavailable"


class VfmClosed(Unavailable):
    """The vFM is draining, or not serving yet."""

    code = "vfm_closed"


class NoWorker(Unavailable):
    """No live worker hosts the backbone."""

    code = "no_worker"


class DeadlineExceeded(FmplexError):
    """The deadline passed before there was an answer."""

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
    field = wire.get("field")
    return kind(
        str(wire.get("message", "unknown error")),
        field=None if field is None else str(field),
        retry_after=wire.get("retry_after"),
    )
