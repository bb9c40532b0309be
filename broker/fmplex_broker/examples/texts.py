"""Files of texts and conversations, for heads that generate: what the model is to learn to say.

A row is `{"text": …}`, learnt as it is, or `{"messages": [{"role", "content"}, …]}` as OpenAI's fine-tuning files have them, of
which the last message, the assistant's, is learnt. Nobody can know what will be asked, so all before it is only read; several
answers of one conversation are several rows. A message may have a `weight`: 0 is taken for all but the last, 1 for the last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.bad_rows import BadRows
from fmplex_broker.examples.files import Row, read_rows
from fmplex_broker.examples.reading import what_is_wrong

LEAST = 2  # rows: one to train on, one held out


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Message(_Record):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)
    weight: Literal[0, 1] | None = Field(default=None, exclude=True)  # no template knows it


class PlainText(_Record):
    """A text to be learnt as it is."""

    text: str = Field(min_length=1)


class Conversation(_Record):
    """A conversation; the last message is what the model is to say."""

    messages: Annotated[tuple[Message, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _something_to_learn(self) -> Conversation:
        *asked, said = self.messages
        if said.role != "assistant":
            raise ValueError(f"nothing to learn: the last message is of the {said.role}, and must be the assistant's")
        if said.weight == 0:
            raise ValueError("nothing to learn: the last message has weight 0")
        if not said.content.strip():
            raise ValueError("nothing to learn: the last message is blank")
        if not asked:
            raise ValueError("an answer to nothing: put the message before it that it answers")
        if any(message.weight == 1 for message in asked):
            raise ValueError("only the last message is learnt, and another has weight 1; make a row of each answer")
        return self


Record = PlainText | Conversation


class TextParser:
    """Checks rows one by one. `bad`: what is wrong with each bad row; `good`: how many were not."""

    def __init__(self) -> None:
        self.bad = BadRows()
        self.good = 0

    def take(self, row: Row) -> Record | None:
        """Check one more row; return its record, None for a bad one."""
        wrong = row.wrong or _other_methods(row.value)
        if not wrong:
            kind: type[Record] = Conversation if _has(row.value, "messages") else PlainText
            try:
                record = kind.model_validate(row.value)
            except ValidationError as e:
                wrong = what_is_wrong(e)
            else:
                self.good += 1
                return record
        self.bad.add(row.place, wrong)
        return None

    def check(self, name: str, least: int = LEAST) -> None:
        """Raise `InvalidInput` (field `data`) if rows of the file `name` were bad, or fewer than `least` were good."""
        self.bad.check(name)
        if self.good < least:
            raise InvalidInput(f"{name} holds {self.good} texts; give at least {least}", field="data")


def read(path: Path) -> list[Record]:
    """Read a file of texts and conversations. Raises `InvalidInput` (field `data`): it cannot be read, up to ten bad rows by
    their places and what is wrong with each, or too few."""
    parser = TextParser()
    records = [record for row in read_rows(path) if (record := parser.take(row)) is not None]
    parser.check(str(path))
    return records


def _has(value: Any, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _other_methods(value: Any) -> str:
    """Name a row that was written for another method, empty if it was not."""
    if _has(value, "preferred_output"):
        return "is a preference (DPO); only supervised examples are taken: 'messages' that end with the answer"
    if tools := [name for name in ("tools", "functions") if _has(value, name)]:
        return f"has {tools[0]!r}: calls of tools are not taught; leave them out, and the messages that call them"
    if _has(value, "messages") or not _has(value, "prompt"):
        return ""
    return 'has \'prompt\'; write {"messages": […]} that end with the assistant\'s answer, or {"text": …}'
