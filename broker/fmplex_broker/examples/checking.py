"""What is wrong with the data of a training, found without training: before it is queued anywhere. No text is kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.files import Row
from fmplex_broker.examples.reading import Parser
from fmplex_broker.examples.split import Labelled, check_apart, check_split, check_teaches, training_part
from fmplex_broker.examples.texts import TextParser
from fmplex_broker.specs.fitting import FitHead

MOST_EXAMPLES = 1_000_000


@dataclass(frozen=True, slots=True)
class DataFile:
    """The rows of a file that a caller knows as `name`."""

    rows: Iterator[Row]
    name: str


def check_examples(
    head: FitHead, training: DataFile, validation: DataFile | None, *, held_out: float, shuffle: int | None
) -> int:
    """Check labelled data for a head, as `reading.read` does; return how many examples are in the training file.

    `held_out`: share of it that is not trained on, after a shuffle with the seed `shuffle`, if there is one. Raises
    `InvalidInput` whose field is `training_file` or `validation_file`.
    """
    parser = Parser(head)
    examples: list[Labelled] = []
    with _blaming("training_file"):
        for row in _few_enough(training):
            if (example := parser.take(row)) is not None:
                examples.append(Labelled.of(example.place, example.record))
        parser.check(training.name)
        if shuffle is not None:
            random.Random(shuffle).shuffle(examples)
        check_split(examples, held_out, training.name, shuffled=shuffle is not None)
        train = training_part(examples, held_out)
        check_teaches(head, train, training.name)
    if validation is not None:
        with _blaming("validation_file"):
            parser.next_file()
            found = [example for row in _few_enough(validation) if (example := parser.take(row)) is not None]
            parser.check(validation.name)
            check_apart(head, train, (Labelled.of(*example) for example in found), validation.name)
    return len(examples)


def check_texts(training: DataFile, validation: DataFile | None) -> int:
    """Check texts and conversations; return how many are in the training file. Raises `InvalidInput` whose field is
    `training_file` or `validation_file`."""
    found = []
    for field, data, least in (("training_file", training, 2), ("validation_file", validation, 1)):
        if data is None:
            continue
        with _blaming(field):
            parser = TextParser()
            for row in _few_enough(data):
                parser.take(row)
            parser.check(data.name, least)
        found.append(parser.good)
    return found[0]


def head_of(row: Any) -> Literal["generation", "classification"]:
    """Return the head that a training file is for, by the value of its first row, where nobody says: what holds conversations, or
    nothing but texts, is for generation, all else for classification."""
    keys = row.keys() if isinstance(row, dict) else set()
    return "generation" if "messages" in keys or keys == {"text"} else "classification"


def _few_enough(data: DataFile) -> Iterator[Row]:
    for number, row in enumerate(data.rows, 1):
        if number > MOST_EXAMPLES:
            raise InvalidInput(f"{data.name} holds more than {MOST_EXAMPLES} examples; give fewer", field="data")
        yield row


@contextmanager
def _blaming(field: str) -> Iterator[None]:
    """Let errors name the file, as the caller calls it."""
    try:
        yield
    except InvalidInput as e:
        raise InvalidInput(e.message, field=field) from None
