"""Errors as OpenAI's API has them, on its routes: statuses, types and codes that programs written for OpenAI act on. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fmplex_broker.errors import FmplexError, TextTooLong, TooLarge

_OWN = ("/v1/vfms", "/v1/artifacts")  # below /v1/, and not OpenAI's
# What OpenAI has a code for; others keep their own.
_CODES = {
    "invalid_input": "invalid_value",
    "text_too_long": "context_length_exceeded",
    "unauthorized": "invalid_api_key",
    "unknown_vfm": "model_not_found",
    "busy": "rate_limit_exceeded",
    "queue_full": "rate_limit_exceeded",
    "rate_limited": "rate_limit_exceeded",
}
_TYPES = {"busy": "requests", "queue_full": "requests", "rate_limited": "tokens"}  # there: what there is too much of


def speaks_openai(path: str) -> bool:
    """Tell whether a path is, or would be, one of OpenAI's API."""
    return path.startswith("/v1/") and not any(f"{path}/".startswith(f"{own}/") for own in _OWN)


def error_status(error: FmplexError, path: str) -> int:
    """Return the HTTP status of an error on a path."""
    return 400 if error.status == 422 and speaks_openai(path) else error.status


def error_body(error: FmplexError, path: str) -> dict[str, Any]:
    """Return the body of an error on a path: OpenAI's, with `field` and `retry_after` where they apply. On OpenAI's routes `code`
    and `type` are OpenAI's words too, elsewhere FMplex's."""
    wire = error.to_wire()
    body = {**wire, "type": error.code, "param": wire.get("field")}
    if speaks_openai(path):
        usual = "server_error" if error.status >= 500 else "invalid_request_error"
        body |= {"code": _CODES.get(error.code, error.code), "type": _TYPES.get(error.code, usual)}
        if isinstance(error, TextTooLong):
            # LiteLLM looks for "This model's maximum …" in Python's repr of this body, which escapes the apostrophe where a text
            # has double quotes too.
            body["message"] = error.message.replace('"', "'")
    return {"error": body}


@contextmanager
def callers_words(rename: Callable[[Sequence[str]], Sequence[str]]) -> Iterator[None]:
    """Make errors of a job name fields of the caller's body: `rename` turns the path of a field in the job into its path there. A
    text of too many bytes to be looked at becomes one that is too long: to whoever sent it, it is the same."""
    try:
        yield
    except FmplexError as e:
        said = _too_long(e) or e
        if said.field is not None:
            field = ".".join(rename(said.field.split(".")))
            if said.message.startswith(f"{said.field}: "):
                said.message = field + said.message.removeprefix(said.field)
            said.field = field
        raise said from e.__cause__


def _too_long(e: FmplexError) -> TextTooLong | None:
    """Return what it is to the caller if one text of several, or the only one, has too many bytes."""
    if not isinstance(e, TooLarge) or not (e.field or "").startswith("inputs."):
        return None
    return TextTooLong(f"This model's maximum context length is exceeded by far: {e.message}", field=e.field)
