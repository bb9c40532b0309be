"""A JSONL file of texts and conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.schema import invalid


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Message(_Record):
    """One message of a conversation."""

    role: Annotated[str, Field(pattern="^(system|user|assistant)$")]
    content: str = Field(min_length=1)


class PlainText(_Record):
    """A text to be learnt as it is."""

    text: str = Field(min_length=1)


class Conversation(_Record):
    """A conversation; the last message is what the model is to say."""

    messages: Annotated[tuple[Message, ...], Field(strict=False, min_length=2)]


Record = PlainText | Conversation


def read(path: Path) -> list[Record]:
    """Read a file of texts and conversations. Raises `InvalidInput` (field `data`) that names the first bad line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidInput(f"{path} cannot be read: {e}", field="data") from e
    records = [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if len(records) < 2:
        raise InvalidInput(f"{path} holds {len(records)} texts; give at least two", field="data")
    return records


def _record(line: str, where: str) -> Record:
    kind: TypeAdapter[Any] = TypeAdapter(Conversation if '"messages"' in line else PlainText)
    try:
        record: Record = kind.validate_json(line)
    except ValidationError as e:
        raise InvalidInput(invalid(e, where).message, field="data") from None
    return record
