"""Training data: JSON lines, checked line by line, so that one reading names every bad line.

| head | keys of a line |
|---|---|
| classification | `text`, `label` — or `labels`, a list, for multi-label (all lines alike); `text_pair` if wanted |
| regression | `text`, `value` |
| tagging | `text`, `spans`: a list of `start`, `end`, `label` (character offsets, end exclusive) |
| similarity, ranking | `text`, `text_pair`, `label`: 0 or 1 |
| embedding | `text`, `label`: texts of one label belong together |

Blank lines are skipped but counted, so that numbers match an editor's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Generic, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import from_json

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fitting import FitHead
from fmplex_broker.specs.schema import Label

SHOWN = 10  # things named in one error
MIN_TRAIN, MIN_HELD_OUT = 4, 1


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _unique(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(labels)) < len(labels):
        raise ValueError("names a label twice")
    return labels


Text = Annotated[str, AfterValidator(_not_blank)]
Relation = Annotated[int, Field(ge=0, le=1)]


class Record(BaseModel):
    """One line of the file. Strict: no conversions, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    text: Text

    @property
    def names(self) -> frozenset[str]:
        """The labels that the line shows."""
        return frozenset()


class LabelRecord(Record):
    """A line of a classification with one label."""

    text_pair: Text | None = None
    label: Label

    @property
    def names(self) -> frozenset[str]:
        """The labels that the line shows."""
        return frozenset({self.label})


class LabelsRecord(Record):
    """A line of a multi-label classification."""

    text_pair: Text | None = None
    labels: Annotated[tuple[Label, ...], Field(strict=False), AfterValidator(_unique)]

    @property
    def names(self) -> frozenset[str]:
        """The labels that the line shows."""
        return frozenset(self.labels)


class GroupRecord(Record):
    """A line of an embedding: texts of one label belong together."""

    label: Label

    @property
    def names(self) -> frozenset[str]:
        """The labels that the line shows."""
        return frozenset({self.label})


class ValueRecord(Record):
    """A line of a regression."""

    # Beyond 1e30 single precision, which heads are stored in, would overflow.
    value: float = Field(ge=-1e30, le=1e30, allow_inf_nan=False)


class PairRecord(Record):
    """A line of a similarity or a ranking: two texts that belong together (1) or do not (0)."""

    text_pair: Text
    label: Relation


class Span(BaseModel):
    """A labelled span: characters [start, end) of the text."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    start: int = Field(ge=0)
    end: int
    label: Label


class SpansRecord(Record):
    """A line of a tagging: spans inside the text that do not overlap."""

    spans: Annotated[tuple[Span, ...], Field(strict=False)]

    @property
    def names(self) -> frozenset[str]:
        """The labels that the line shows."""
        return frozenset(span.label for span in self.spans)

    @model_validator(mode="after")
    def _in_range_and_apart(self) -> SpansRecord:
        done = 0
        for span in sorted(self.spans, key=lambda s: s.start):
            where = f"span {span.start}..{span.end} ({span.label!r})"
            if not span.start < span.end <= len(self.text):
                raise ValueError(f"{where} is not inside the text, which has {len(self.text)} characters")
            if span.start < done:
                raise ValueError(f"{where} overlaps the one before it")
            if not self.text[span.start : span.end].strip():
                raise ValueError(f"{where} holds nothing but white space")
            done = span.end
        return self


R = TypeVar("R", bound=Record, covariant=True)


class Example(NamedTuple, Generic[R]):
    """A record and the number of its line, from 1."""

    line: int
    record: R


class Split(NamedTuple, Generic[R]):
    """The examples of a file, to train on and held out."""

    train: list[Example[R]]
    held_out: list[Example[R]]


_KINDS: dict[FitHead, type[Record]] = {
    "embedding": GroupRecord,
    "classification": LabelRecord,
    "regression": ValueRecord,
    "tagging": SpansRecord,
    "similarity": PairRecord,
    "ranking": PairRecord,
}


def read(path: Path, head: FitHead, held_out: float) -> Split[Record]:
    """Read and check a whole file; the last `held_out` share of its examples is held out.

    Raises `InvalidInput` (field `data`): the file cannot be read or is not text, up to ten bad lines by number and what is
    wrong with each, or too few examples.
    """
    examples, bad = _parse(_lines(path), head)
    if bad:
        raise InvalidInput(f"{path}: {len(bad)} bad line(s)\n" + listed(bad, "\n"), field="data")
    if not examples:
        raise InvalidInput(f"{path} holds no examples; write one JSON object a line", field="data")
    cut = len(examples) - round(len(examples) * held_out)
    train, held = examples[:cut], examples[cut:]
    if len(train) < MIN_TRAIN or len(held) < MIN_HELD_OUT:
        raise InvalidInput(
            f"{path} holds too few examples: {len(train)} to train on and {len(held)} held out; at least "
            f"{MIN_TRAIN} and {MIN_HELD_OUT} are needed (held_out is {held_out:.3g})",
            field="data",
        )
    _not_sorted(train, held, path)
    return Split(train, held)


def listed(things: Sequence[str], separator: str) -> str:
    """Join the first ten things, and say how many more there are."""
    more = [f"(and {len(things) - SHOWN} more)"] if len(things) > SHOWN else []
    return separator.join([*things[:SHOWN], *more])


def names(records: Iterable[Record]) -> frozenset[str]:
    """Collect all labels of some records."""
    return frozenset(name for record in records for name in record.names)


def _not_sorted(train: list[Example[Record]], held_out: list[Example[Record]], path: Path) -> None:
    known = names(example.record for example in train)
    strangers = [example for example in held_out if not example.record.names <= known]
    if 2 * len(strangers) > len(held_out):
        line, record = strangers[0]
        raise InvalidInput(
            f"{path}: most of the last {len(held_out)} examples, which are held out, have labels that the others never show "
            f"(line {line}: {sorted(record.names - known)}); the file seems sorted by label: shuffle its lines",
            field="data",
        )


def _lines(path: Path) -> list[str]:
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path} is not a file; give a file of JSON lines", field="data")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise InvalidInput(f"{path} cannot be read ({e.strerror}); check the path", field="data") from e
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise InvalidInput(f"{path} is not UTF-8 text (line {line}); write JSON lines", field="data") from e
    if "\0" in text:
        raise InvalidInput(f"{path} is a binary file (it holds NUL bytes); write JSON lines", field="data")
    return text.split("\n")  # not splitlines: U+2028 and its like may stand inside a JSON string


def _parse(lines: list[str], head: FitHead) -> tuple[list[Example[Record]], list[str]]:
    """Parse lines: the good examples, and for each bad line what is wrong with it."""
    kind = _KINDS[head]
    decided = 0  # the line that decided between `label` and `labels`
    examples: list[Example[Record]] = []
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = from_json(line, allow_inf_nan=False)
            if head == "classification" and isinstance(value, dict):
                form = _form(value)
                if form is not None and not decided:
                    kind, decided = form, number
                elif form is not None and form is not kind:
                    raise ValueError(
                        f"has {_key(form)}, but line {decided} has {_key(kind)}; use one of them throughout"
                    )
            examples.append(Example(number, TypeAdapter(kind).validate_python(value)))
        except ValidationError as e:
            bad.append(f"line {number}: {_wrong(e)}")
        except ValueError as e:
            what = str(e) if str(e).startswith("has ") else f"not JSON ({str(e).replace('at line 1 ', 'at ')})"
            bad.append(f"line {number}: {what}")
    return examples, bad


def _form(value: dict[str, object]) -> type[Record] | None:
    if ("label" in value) == ("labels" in value):  # neither or both: the record's own check says so
        return None
    return LabelRecord if "label" in value else LabelsRecord


def _key(kind: type[Record]) -> str:
    return "'labels'" if kind is LabelsRecord else "'label'"


def _wrong(error: ValidationError) -> str:
    """Say in words all that is wrong with one line."""
    parts = []
    for e in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in e["loc"])
        if e["type"] == "missing":
            parts.append(f"key {where!r} is missing")
        elif e["type"] == "extra_forbidden":
            parts.append(f"unknown key {where!r}")
        elif e["type"] == "model_type":
            parts.append(f"{where!r}: not a JSON object" if where else "not a JSON object")
        else:
            what = e["msg"].removeprefix("Value error, ")
            parts.append(f"{where!r}: {what}" if where else what)
    return "; ".join(parts)
