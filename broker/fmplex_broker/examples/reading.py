"""Training data: the examples of a file, checked one by one, so that one reading names every bad one, and split.

See `records` for what an example holds, `files` for how it may be written down.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.bad_rows import SHOWN, BadRows
from fmplex_broker.examples.files import Row, read_rows
from fmplex_broker.examples.records import KINDS, LabelRecord, LabelsRecord, Record
from fmplex_broker.examples.split import Labelled, check_split, held_out_from
from fmplex_broker.specs.fitting import FitHead
from fmplex_broker.specs.schema import in_words

R = TypeVar("R", bound=Record, covariant=True)


class Example(NamedTuple, Generic[R]):
    """A record and its place in the file, as `line 7`, or `example 7` of an array."""

    place: str
    record: R


class Split(NamedTuple, Generic[R]):
    """The examples of a file, to train on and held out; `ignored`: keys that say nothing to the head."""

    train: list[Example[R]]
    held_out: list[Example[R]]
    ignored: tuple[str, ...] = ()


def read(path: Path, head: FitHead, held_out: float, shuffle: int | None = None) -> Split[Record]:
    """Read and check a whole file; the last `held_out` share of its examples is held out, after a shuffle with the seed
    `shuffle`, if there is one.

    Raises `InvalidInput` (field `data`): the file cannot be read or is not text, up to ten bad examples by their places and what
    is wrong with each, too few examples, or an order in which those held out are not like the others.
    """
    parser = Parser(head)
    examples = [example for row in read_rows(path) if (example := parser.take(row)) is not None]
    parser.check(str(path))
    if shuffle is not None:
        random.Random(shuffle).shuffle(examples)
    labelled = [Labelled.of(example.place, example.record) for example in examples]
    check_split(labelled, held_out, str(path), shuffled=shuffle is not None)
    cut = held_out_from(len(examples), held_out)
    return Split(examples[:cut], examples[cut:], tuple(sorted(parser.ignored)))


def listed(things: Sequence[str], separator: str) -> str:
    """Join the first ten things, and say how many more there are."""
    more = [f"(and {len(things) - SHOWN} more)"] if len(things) > SHOWN else []
    return separator.join([*things[:SHOWN], *more])


def names(records: Iterable[Record]) -> frozenset[str]:
    """Collect all labels of some records."""
    return frozenset(name for record in records for name in record.names)


class Parser:
    """Checks rows one by one. `bad`: what is wrong with each bad row, `ignored`: keys that say nothing to the head."""

    def __init__(self, head: FitHead) -> None:
        self.bad = BadRows()
        self.ignored: set[str] = set()
        self.good = 0
        self._head = head
        self._kind = KINDS[head]
        self._decided = ""  # the place that decided between `label` and `labels`

    def take(self, row: Row) -> Example[Record] | None:
        """Check one more row; return its example, None for a bad one."""
        wrong = row.wrong or self._wrong_keys(row)
        if not wrong:
            try:
                record = self._kind.model_validate(row.value)
            except ValidationError as e:
                wrong = what_is_wrong(e)
            else:
                self.ignored |= row.value.keys() - self._kind.model_fields.keys()
                self.good += 1
                return Example(row.place, record)
        self.bad.add(row.place, wrong)
        return None

    def next_file(self) -> None:
        """Begin with another file, whose rows must be of the kind of those before."""
        self.bad, self.good = BadRows(), 0
        if self._decided:
            self._decided = f"{self._decided} of the file to train on"

    def check(self, name: str) -> None:
        """Raise `InvalidInput` (field `data`) if rows of the file `name` were bad, or there were none."""
        self.bad.check(name)
        if not self.good:
            raise InvalidInput(f"{name} holds no examples; write one JSON object a line", field="data")

    def _wrong_keys(self, row: Row) -> str:
        """Say which keys contradict each other, or would be lost in silence; empty if none."""
        if not isinstance(row.value, dict):
            return ""
        if self._head == "classification":
            if "label" in row.value and "labels" in row.value:
                return "has 'label' and 'labels'; use one of them throughout"
            form = LabelRecord if "label" in row.value else LabelsRecord if "labels" in row.value else None
            if form is not None and not self._decided:
                self._kind, self._decided = form, row.place
            elif form is not None and form is not self._kind:
                return f"has {_key(form)}, but {self._decided} has {_key(self._kind)}; use one of them throughout"
        if row.value.get("text_pair") and "text_pair" not in self._kind.model_fields:
            return f"has 'text_pair', but of {self._head} an example is one text; leave it out"
        return ""


def _key(kind: type[Record]) -> str:
    return "'labels'" if kind is LabelsRecord else "'label'"


def what_is_wrong(error: ValidationError) -> str:
    """Say in words all that is wrong with one example."""
    parts = []
    for e in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in e["loc"])
        if e["type"] == "missing":
            parts.append(f"key {where!r} is missing")
        elif e["type"] == "model_type":
            parts.append(f"{where!r}: not a JSON object" if where else "not a JSON object")
        else:
            what = in_words(e)
            parts.append(f"{where!r}: {what}" if where else what)
    return "; ".join(parts)
