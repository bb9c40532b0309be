"""The task of a head in training: which sequences an example has, its target, the loss, the score and the baseline.

One class a kind of data: those with a linear layer are in `linear_tasks`, those without weights in `metric_tasks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.reading import names
from fmplex_broker.examples.records import PairRecord, Record
from fmplex_broker.examples.split import SHUFFLE
from fmplex_broker.specs.heads import Head, Pooling
from fmplex_worker.backbones.texts import Raw, Text
from fmplex_worker.tuning.encoder import EncodedExample

UNSEEN = -1  # the target of a label that the training part does not have

R = TypeVar("R", bound=Record)


class Loss(NamedTuple):
    """A loss of outputs and targets: `total` over rows, to be divided by the `size` of the targets of the whole batch, however
    many micro-batches it goes through. One that compares rows is not `divisible`: all of a batch must be in one of them."""

    total: Callable[[Tensor, Tensor], Tensor]
    size: Callable[[Tensor], float]
    divisible: bool = True

    def mean(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of rows that are all of a batch."""
        return self.total(outputs, target) / self.size(target)


class Predictions(NamedTuple):
    """Predictions for some items: `outputs` [rows, outputs] of the head, or pooled states."""

    outputs: Tensor
    items: Sequence[EncodedExample]


class Task(ABC, Generic[R]):
    """The task of one kind of head. `outputs`: rows of the head's weight, 0 for a head without weights. `pooling` None: one row
    a token."""

    metric: ClassVar[str]
    head: Head
    outputs: int
    pooling: Pooling | None
    labels: tuple[str, ...] = ()

    @abstractmethod
    def item(self, record: R, sequences: tuple[Text, ...]) -> EncodedExample:
        """Make the example of one record, whose texts are encoded in `sequences`."""

    @abstractmethod
    def loss(self, train: Tensor) -> Loss:
        """Make the loss of outputs and targets, given the targets of the whole training part (for weights of rare labels)."""

    @abstractmethod
    def score(self, reference: Predictions, part: Predictions) -> float:
        """Score `part`; what must be chosen from data (threshold, centroids) is chosen on `reference`."""

    @abstractmethod
    def baseline(self, train: Sequence[EncodedExample], held_out: Sequence[EncodedExample]) -> float:
        """Score on `held_out` the best answer that does not look at the text, as `train` suggests it."""

    def texts(self, record: R) -> tuple[Raw, ...]:
        """Return the sequences that serving would encode for this record."""
        pair = getattr(record, "text_pair", None)
        return (record.text,) if pair is None else ((record.text, pair),)

    def scale(self, train: Tensor) -> tuple[float, float]:
        """Return mean and spread of the head's outputs, so that it starts near its targets."""
        return 0.0, 1.0


def several_labels(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the distinct labels, sorted. Raises `InvalidInput` if there is only one."""
    labels = tuple(sorted(names(records)))
    if len(labels) < 2:
        raise InvalidInput(
            f"the training part has only {len(labels)} label(s) {list(labels)}; two or more are needed "
            f"(are the lines sorted by label? mix them: {SHUFFLE})",
            field="data",
        )
    return labels


def both_relations(records: Sequence[PairRecord]) -> None:
    """Raise `InvalidInput` unless the pairs show both labels."""
    if len({record.label for record in records}) < 2:
        raise InvalidInput(
            f"the training part has only pairs of label {records[0].label}; both 0 and 1 are needed "
            f"(are the lines sorted by label? mix them: {SHUFFLE})",
            field="data",
        )
