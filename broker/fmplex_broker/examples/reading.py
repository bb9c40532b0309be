"""Training data: the examples of a file, checked one by one, so that one reading names every bad one, and split.

See `records` for what an example holds, `files` for how it may be written down.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.files import Row, read_rows
from fmplex_broker.examples.records import KINDS, LabelRecord, LabelsRecord, PairRecord, Record, ValueRecord
from fmplex_broker.specs.fitting import FitHead

SHOWN = 10  # things named in one error
MIN_TRAIN, MIN_HELD_OUT = 4, 1

R = TypeVar("R", bound=Record, covariant=True)


class BadRows:
    """What is wrong with the bad rows of a file: the first ten, and how many more there are."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._many = 0

    def add(self, place: str, wrong: str) -> None:
        """Note a bad row."""
        self._many += 1
        if self._many <= SHOWN:
            self._told.append(f"{place}: {wrong}")

    def check(self, name: str) -> None:
        """Raise `InvalidInput` (field `data`) if the file `name` has any."""
        if self._many:
            more = [f"(and {self._many - SHOWN} more)"] if self._many > SHOWN else []
            raise InvalidInput(f"{name}: {self._many} bad line(s)\n" + "\n".join([*self._told, *more]), field="data")


class Example(NamedTuple, Generic[R]):
    """A record and its place in the file, as `line 7`, or `example 7` of an array."""

    place: str
    record: R


class Split(NamedTuple, Generic[R]):
    """The examples of a file, to train on and held out; `ignored`: keys that say nothing to the head."""

    train: list[Example[R]]
    held_out: list[Example[R]]
    ignored: tuple[str, ...] = ()


class Labelled(NamedTuple):
    """What the checks of a whole file need of an example: its place, what is to be learned of it, and the labels it shows."""

    place: str
    answer: Any
    names: frozenset[str]

    @classmethod
    def of(cls, example: Example[Record]) -> Labelled:
        """Return what the checks need of an example."""
        return cls(example.place, _answer(example.record), example.record.names)


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
    check_split([Labelled.of(example) for example in examples], held_out, str(path), shuffled=shuffle is not None)
    cut = _cut(len(examples), held_out)
    return Split(examples[:cut], examples[cut:], tuple(sorted(parser.ignored)))


def check_split(examples: Sequence[Labelled], held_out: float, name: str, *, shuffled: bool) -> None:
    """Check that the examples of the file `name`, in the order in which they are split, are enough, and that those held out are
    like the others. Raises `InvalidInput` (field `data`)."""
    cut = _cut(len(examples), held_out)
    train, held = examples[:cut], examples[cut:]
    if len(train) < MIN_TRAIN or len(held) < MIN_HELD_OUT:
        raise InvalidInput(
            f"{name} holds too few examples: {len(train)} to train on and {len(held)} held out; at least "
            f"{MIN_TRAIN} and {MIN_HELD_OUT} are needed (held_out is {held_out:.3g})",
            field="data",
        )
    if not shuffled:
        _not_sorted(examples, name)
    _not_strangers(train, held, name)


def _cut(examples: int, held_out: float) -> int:
    return examples - round(examples * held_out)


def listed(things: Sequence[str], separator: str) -> str:
    """Join the first ten things, and say how many more there are."""
    more = [f"(and {len(things) - SHOWN} more)"] if len(things) > SHOWN else []
    return separator.join([*things[:SHOWN], *more])


def names(records: Iterable[Record]) -> frozenset[str]:
    """Collect all labels of some records."""
    return frozenset(name for record in records for name in record.names)


def _not_sorted(examples: Sequence[Labelled], name: str) -> None:
    """Raise `InvalidInput` if the examples are sorted by what is to be learned: the last ones would not be like the others."""
    answers = [example.answer for example in examples]
    if isinstance(answers[0], float):
        several = len(set(answers)) > 2
        up, down = (
            all(test(a, b) for a, b in pairwise(answers)) for test in (lambda a, b: a <= b, lambda a, b: a >= b)
        )
        in_order = several and (up or down)
    else:
        counts, runs = Counter(answers), sum(1 for _ in groupby(answers))
        by_chance = 1 + len(answers) - sum(n * n for n in counts.values()) / len(answers)  # runs, on average
        in_order = runs <= max(len(counts), by_chance / 4) and runs <= by_chance / 2
    if in_order:
        raise InvalidInput(
            f"{name} seems sorted by label or value, so that its last lines, which are held out, are not like the others; "
            "shuffle them: --shuffle, or shuffle=True",
            field="data",
        )


def _answer(record: Record) -> Any:
    """Return what is to be learned of a record."""
    if isinstance(record, ValueRecord):
        return record.value
    return record.label if isinstance(record, PairRecord) else record.names


def _not_strangers(train: Sequence[Labelled], held_out: Sequence[Labelled], name: str) -> None:
    known = frozenset(label for example in train for label in example.names)
    strangers = [example for example in held_out if not example.names <= known]
    if 2 * len(strangers) > len(held_out):
        first = strangers[0]
        raise InvalidInput(
            f"{name}: most of the last {len(held_out)} examples, which are held out, have labels that the others never show "
            f"({first.place}: {sorted(first.names - known)}); shuffle them (--shuffle, or shuffle=True), or give more of each "
            "label",
            field="data",
        )


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
    for e in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in e["loc"])
        if e["type"] == "missing":
            parts.append(f"key {where!r} is missing")
        elif e["type"] == "model_type":
            parts.append(f"{where!r}: not a JSON object" if where else "not a JSON object")
        else:
            what = e["msg"].removeprefix("Value error, ")
            parts.append(f"{where!r}: {what}" if where else what)
    return "; ".join(parts)
