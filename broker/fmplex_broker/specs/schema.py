"""Base of all specs: pydantic models that never change and refuse unknown keys, names, and messages for mistakes in them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticKnownError

from fmplex_broker.errors import InvalidInput

# Names become parts of Redis keys: none of `: # { }` may appear.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=256)]


S = TypeVar("S")
# Pydantic makes an error of every wrong item, millions of them if it comes to that, and we show one.
Several = Annotated[tuple[S, ...], FailFast()]


def at_most(many: int) -> BeforeValidator:
    """Make the check that a mapping or list has `many` entries at most, before any of them is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict | list | tuple) and len(value) > many:
            counts = {"max_length": many, "actual_length": len(value)}
            raise PydanticKnownError("too_long", {"field_type": type(value).__name__, **counts})
        return value

    return BeforeValidator(check)


class Spec(BaseModel):
    """Base of all specs: immutable, and an unknown key is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_key(cls, value: Any) -> Any:
        """Leave the first of many unknown keys, for the error."""
        if not isinstance(value, dict) or len(value) <= len(cls.model_fields):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        first = next((key for key in value if key not in known), None)
        return {key: part for key, part in value.items() if key in known or key == first}


# Made for each job anew, one would cost more than what it checks.
_adapter: Callable[[Any], TypeAdapter[Any]] = lru_cache(maxsize=256)(TypeAdapter)


def parse(kind: type[S], value: Any, *, source: str = "") -> S:
    """Validate a mapping as `kind`. Raises `InvalidInput` whose `field` and message name the first wrong key."""
    try:
        checked: S = _adapter(kind).validate_python(value)
        return checked
    except ValidationError as e:
        raise invalid(e, source) from None
    except InvalidInput as e:  # of a check that knows better which key is at fault
        raise InvalidInput(f"{source + ': ' if source else ''}{e.field}: {e.message}", field=e.field) from None


def invalid(error: ValidationError, source: str = "") -> InvalidInput:
    """Turn a pydantic error into ours: the path of the wrong key, and what is wrong with it."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "(whole)"
    return InvalidInput(f"{source + ': ' if source else ''}{field}: {in_words(first)}", field=field)


def in_words(wrong: ErrorDetails) -> str:
    """Say what is wrong in words that need no Python; in pydantic's own where they do not."""
    bounds = wrong.get("ctx", {})
    match wrong["type"]:
        case "extra_forbidden":
            return "unknown key; remove it or mend its spelling"
        case "too_long":
            return f"at most {bounds['max_length']} are taken" + _not(bounds["actual_length"])
        case "too_short":
            return f"at least {bounds['min_length']} must be given" + _not(bounds["actual_length"])
    return wrong["msg"].removeprefix("Value error, ")


def _not(many: int | None) -> str:
    return "" if many is None else f", not {many}"


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises `InvalidInput` when it is missing or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InvalidInput(f"{path}: cannot be read ({e.strerror}); check the path") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise InvalidInput(f"{path}: not valid TOML: {e}") from e
