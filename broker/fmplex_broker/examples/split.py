"""What is wrong with the examples of a file taken together: too few, sorted, or nothing to learn from them. Pure."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.bad_rows import BadRows
from fmplex_broker.examples.records import PairRecord, Record, ValueRecord
from fmplex_broker.specs.fitting import FitHead

MIN_TRAIN, MIN_HELD_OUT = 4, 1
SHUFFLE = "--shuffle, or shuffle=True; of a tuning job -o shuffle=true, or fit.shuffle"


class Labelled(NamedTuple):
    """What the checks of a whole file need of an example: its place, what is to be learned of it, and the labels it shows."""

    place: str
    answer: Any
    names: frozenset[str]

    @classmethod
    def of(cls, place: str, record: Record) -> Labelled:
        """Return what the checks need of the record at a place."""
        return cls(place, _answer(record), record.names)


def check_split(examples: Sequence[Labelled], held_out: float, name: str, *, shuffled: bool) -> None:
    """Check that the examples of the file `name`, in the order in which they are split, are enough, and that those held out are
    like the others. Raises `InvalidInput` (field `data`)."""
    cut = held_out_from(len(examples), held_out)
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


def held_out_from(examples: int, held_out: float) -> int:
    """Return which of so many examples is the first that is held out."""
    return examples - round(examples * held_out)


def training_part(examples: Sequence[Labelled], held_out: float) -> Sequence[Labelled]:
    """Return the examples that are not held out."""
    return examples[: held_out_from(len(examples), held_out)]


def check_teaches(head: FitHead, train: Sequence[Labelled], name: str) -> None:
    """Check that a head can learn something from the training part of the file `name`. Raises `InvalidInput` (field `data`)."""
    mix = f"(are the lines sorted by label? mix them: {SHUFFLE})"
    labels = frozenset(label for example in train for label in example.names)
    wrong = ""
    if head in ("classification", "embedding") and len(labels) < 2:
        wrong = f"the training part has only {len(labels)} label(s) {sorted(labels)}; two or more are needed {mix}"
    elif head == "tagging" and not labels:
        wrong = "no line of the training part has a span; label some"
    elif head in ("similarity", "ranking") and len({example.answer for example in train}) < 2:
        wrong = f"the training part has only pairs of label {train[0].answer}; both 0 and 1 are needed {mix}"
    elif head == "regression" and len({example.answer for example in train}) < 2:
        wrong = "every value of the training part is the same; there is nothing to learn"
    if wrong:
        raise InvalidInput(f"{name}: {wrong}", field="data")


def check_apart(head: FitHead, train: Sequence[Labelled], apart: Iterable[Labelled], name: str) -> None:
    """Check that a head which learns from the training part can be scored on other examples, of the file `name`: it knows all
    of their labels. Raises `InvalidInput` (field `data`) that names up to ten."""
    if head not in ("classification", "tagging"):
        return
    known = frozenset(label for example in train for label in example.names)
    bad = BadRows()
    for example in apart:
        if strange := sorted(example.names - known):
            bad.add(example.place, f"label(s) {strange}, which no example to train on has")
    bad.check(name)


def _not_sorted(examples: Sequence[Labelled], name: str) -> None:
    """Raise `InvalidInput` if the examples are sorted by what is to be learned: the last ones would not be like the others."""
    answers = [example.answer for example in examples]
    if isinstance(answers[0], float):
        several = len(set(answers)) > 2
        up, down = (all(test(a, b) for a, b in pairwise(answers)) for test in (operator.le, operator.ge))
        in_order = several and (up or down)
    else:
        counts, runs = Counter(answers), sum(1 for _ in groupby(answers))
        by_chance = 1 + len(answers) - sum(n * n for n in counts.values()) / len(answers)  # runs, on average
        in_order = runs <= max(len(counts), by_chance / 4) and runs <= by_chance / 2
    if in_order:
        raise InvalidInput(
            f"{name} seems sorted by label or value, so that its last lines, which are held out, are not like the others; "
            f"shuffle them: {SHUFFLE}",
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
            f"({first.place}: {sorted(first.names - known)}); shuffle them ({SHUFFLE}), or give more of each "
            "label",
            field="data",
        )
