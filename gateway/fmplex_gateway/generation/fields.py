"""Fields of the bodies of /v1/chat/completions and /v1/completions: what is accepted, and what is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from fmplex_gateway.schemas import Items

# What asks for nothing may stay: programs send OpenAI's defaults.
_DEFAULTS: tuple[Any, ...] = (False, "", [], {}, ["text"], "none", "auto", "default")


def _refuse(value: Any) -> Any:
    if value in _DEFAULTS:
        return None
    raise PydanticCustomError("unsupported", "FMplex does not have this part of OpenAI's API; leave it out")


def _refuse_tools(value: Any) -> Any:
    if value in _DEFAULTS:
        return None
    raise PydanticCustomError("unsupported", "FMplex does not have this part of OpenAI's API: tools are not there yet")


def _role(value: Any) -> Any:
    return _refuse_tools(value) if value in ("tool", "function") else value


def _best_of(value: Any, info: ValidationInfo) -> Any:
    """Accept `best_of` equal to `n`, which chooses nothing; 1 is OpenAI's default."""
    return None if value in (1, info.data.get("n")) else _refuse(value)


def _joined_content(value: Any) -> Any:
    """Join the parts of a message's content to one text, each on a line of its own."""
    if not isinstance(value, list):
        return value
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise PydanticCustomError("content", "only text parts are taken, not {kind}", {"kind": str(kind)})
    return "\n".join(part["text"] for part in value)


Refused = Annotated[Any, AfterValidator(_refuse)]  # OpenAI knows it, FMplex does not
Tools = Annotated[Any, AfterValidator(_refuse_tools)]
MediumOnly = Annotated[Any, AfterValidator(lambda value: None if value == "medium" else _refuse(value))]
Stops = Annotated[Items[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Role = Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_role)]
Content = Annotated[str, BeforeValidator(_joined_content)]
BestOf = Annotated[Any, AfterValidator(_best_of)]
