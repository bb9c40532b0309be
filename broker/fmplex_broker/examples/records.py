"""The kinds of training examples: what each head learns from, checked example by example.

| head | keys of an example |
|---|---|
| classification | `text`, `label` — or `labels`, a list, for multi-label (all examples alike); `text_pair` if wanted |
| regression | `text`, `value` |
| tagging | `text`, `spans`: a list of `start`, `end`, `label` (character offsets, end exclusive) |
| similarity, ranking | `text`, `text_pair`, `label`: 0 or 1 |
| embedding | `text`, `label`: texts of one label belong together |

A label is a text, a whole number (`3` is the label `"3"`) or a truth value (`"true"`, `"false"`). Other keys are left alone.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fmplex_broker.specs.fitting import FitHead
from fmplex_broker.specs.schema import Label


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _unique(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(labels)) < len(labels):
        raise ValueError("names a label twice")
    return labels


def _as_label(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    if isinstance(value, float):
        raise ValueError("is a number with a decimal point; write a text or a whole number")
    return str(value) if isinstance(value, int) else value


def _as_relation(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return int(value) if value in ("0", "1") else value  # what a CSV holds is text


Text = Annotated[str, AfterValidator(_not_blank)]
LabelName = Annotated[Label, BeforeValidator(_as_label)]
Relation = Annotated[int, Field(ge=0, le=1), BeforeValidator(_as_relation)]


class Record(BaseModel):
    """One example. Strict: no conversions but those of labels; keys that say nothing of it are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    text: Text

    @property
    def names(self) -> frozenset[str]:
        """The labels that the example shows."""
        return frozenset()


class LabelRecord(Record):
    """An example of a classification with one label."""

    text_pair: Text | None = None
    label: LabelName

    @property
    def names(self) -> frozenset[str]:
        """The labels that the example shows."""
        return frozenset({self.label})


class LabelsRecord(Record):
    """An example of a multi-label classification."""

    text_pair: Text | None = None
    labels: Annotated[tuple[LabelName, ...], Field(strict=False), AfterValidator(_unique)]

    @property
    def names(self) -> frozenset[str]:
        """The labels that the example shows."""
        return frozenset(self.labels)


class GroupRecord(Record):
    """An example of an embedding: texts of one label belong together."""

    label: LabelName

    @property
    def names(self) -> frozenset[str]:
        """The labels that the example shows."""
        return frozenset({self.label})


class ValueRecord(Record):
    """An example of a regression."""

    # Beyond 1e30 single precision, which heads are stored in, would overflow.
    value: float = Field(ge=-1e30, le=1e30, allow_inf_nan=False)


class PairRecord(Record):
    """An example of a similarity or a ranking: two texts that belong together (1) or do not (0)."""

    text_pair: Text
    label: Relation


class Span(BaseModel):
    """A labelled span: characters [start, end) of the text."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    start: int = Field(ge=0)
    end: int
    label: LabelName


class SpansRecord(Record):
    """An example of a tagging: spans inside the text that do not overlap."""

    spans: Annotated[tuple[Span, ...], Field(strict=False)]

    @property
    def names(self) -> frozenset[str]:
        """The labels that the example shows."""
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


KINDS: dict[FitHead, type[Record]] = {
    "embedding": GroupRecord,
    "classification": LabelRecord,
    "regression": ValueRecord,
    "tagging": SpansRecord,
    "similarity": PairRecord,
    "ranking": PairRecord,
}
