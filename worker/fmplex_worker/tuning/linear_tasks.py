"""Heads that are a linear layer: on the pooled state, or, for tagging, on the state of every token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.reading import names
from fmplex_broker.examples.records import LabelRecord, LabelsRecord, PairRecord, SpansRecord, ValueRecord
from fmplex_broker.specs.heads import Classification, Pooling, Ranking, Regression, Tagging
from fmplex_broker.specs.tag_schemes import read_tags
from fmplex_worker.backbones.texts import Text
from fmplex_worker.heads.spans import spans
from fmplex_worker.tuning import scores
from fmplex_worker.tuning.encoder import EncodedExample, targets, visible
from fmplex_worker.tuning.tasks import UNSEEN, Loss, Predictions, Task, both_relations, several_labels


class ClassificationTask(Task[LabelRecord]):
    """Classification with one label a text; its classes are the labels of the training part."""

    metric = "accuracy"

    def __init__(self, records: Sequence[LabelRecord], pooling: Pooling) -> None:
        self.labels = several_labels(records)
        self.head = Classification(labels=self.labels, pooling=pooling)
        self.outputs, self.pooling = len(self.labels), pooling
        self._index = {label: i for i, label in enumerate(self.labels)}

    def item(self, record: LabelRecord, sequences: tuple[Text, ...]) -> EncodedExample:
        """Make the example of one record; see `Task.item`."""
        return EncodedExample(sequences, torch.tensor([self._index.get(record.label, UNSEEN)]), stratum=record.label)

    def loss(self, train: Tensor) -> Loss:
        """Make the loss; see `Task.loss`."""
        return _weighted_cross_entropy(train, self.outputs)

    def score(self, reference: Predictions, part: Predictions) -> float:
        """Score predictions; see `Task.score`."""
        return scores.accuracy(part.outputs.argmax(-1), targets(part.items))

    def baseline(self, train: Sequence[EncodedExample], held_out: Sequence[EncodedExample]) -> float:
        """Score the trivial answer; see `Task.baseline`."""
        return scores.majority_accuracy(targets(train), targets(held_out))


class MultiLabelTask(Task[LabelsRecord]):
    """Classification with any number of labels a text; a label is given if its output is above 0."""

    metric = "micro_f1"

    def __init__(self, records: Sequence[LabelsRecord], pooling: Pooling) -> None:
        self.labels = several_labels(records)
        self.head = Classification(labels=self.labels, multi_label=True, pooling=pooling)
        self.outputs, self.pooling = len(self.labels), pooling

    def item(self, record: LabelsRecord, sequences: tuple[Text, ...]) -> EncodedExample:
        """Make the example of one record; see `Task.item`."""
        target = torch.tensor([[float(label in record.labels) for label in self.labels]])
        return EncodedExample(sequences, target, frozenset(record.labels), "\n".join(sorted(record.names)))

    def loss(self, train: Tensor) -> Loss:
        """Make the loss; see `Task.loss`."""
        present = train.sum(0)
        # The square root: full balancing makes rare labels too eager for a threshold of one half.
        weight = ((len(train) - present) / present.clamp(min=1)).sqrt().clamp(0.1, 10)
        return Loss(
            lambda outputs, target: functional.binary_cross_entropy_with_logits(
                outputs, target, pos_weight=weight.to(outputs), reduction="sum"
            ),
            torch.numel,
        )

    def score(self, reference: Predictions, part: Predictions) -> float:
        """Score predictions; see `Task.score`."""
        rows = (part.outputs > 0).tolist()
        found = [{label for label, on in zip(self.labels, row, strict=True) if on} for row in rows]
        return scores.micro_f1(found, [item.gold for item in part.items])

    def baseline(self, train: Sequence[EncodedExample], held_out: Sequence[EncodedExample]) -> float:
        """Score the trivial answer; see `Task.baseline`."""
        return scores.constant_set_f1([item.gold for item in train], [item.gold for item in held_out])


class RegressionTask(Task[ValueRecord]):
    """Regression. Raises `InvalidInput` if all values of the training part are the same."""

    metric = "r2"

    def __init__(self, records: Sequence[ValueRecord], pooling: Pooling) -> None:
        if len({record.value for record in records}) < 2:
            raise InvalidInput("every value of the training part is the same; there is nothing to learn", field="data")
        self.head, self.outputs, self.pooling = Regression(pooling=pooling), 1, pooling

    def item(self, record: ValueRecord, sequences: tuple[Text, ...]) -> EncodedExample:
        """Make the example of one record; see `Task.item`."""
        return EncodedExample(
            sequences, torch.tensor([record.value], dtype=torch.float32), stratum=f"{record.value:.3g}"
        )

    def scale(self, train: Tensor) -> tuple[float, float]:
        """Return mean and spread of the values; see `Task.scale`."""
        # At least the resolution of float32 about the mean: nothing finer could be learned or served.
        mean = float(train.double().mean())
        return mean, max(float(train.double().std(correction=0)), abs(mean) * 1e-6, 1e-30)

    def loss(self, train: Tensor) -> Loss:
        """Make the loss; see `Task.loss`."""
        _, spread = self.scale(train)
        return Loss(lambda outputs, target: ((outputs[:, 0] - target) / spread).square().sum(), len)

    def score(self, reference: Predictions, part: Predictions) -> float:
        """Score predictions; see `Task.score`."""
        mean = float(targets(reference.items).double().mean())
        return scores.r2(part.outputs[:, 0], targets(part.items), mean)

    def baseline(self, train: Sequence[EncodedExample], held_out: Sequence[EncodedExample]) -> float:
        """Score the trivial answer; see `Task.baseline`."""
        return 0.0


class TaggingTask(Task[SpansRecord]):
    """Tagging: every token that overlaps a span is of its label; class 0 is outside. Raises `InvalidInput` without any span, and
    for labels that are tags of a scheme."""

    metric = "span_f1"
    pooling = None

    def __init__(self, records: Sequence[SpansRecord]) -> None:
        self.labels = tuple(sorted(names(records)))
        if not self.labels:
            raise InvalidInput("no line of the training part has a span; label some", field="data")
        if (tags := read_tags(self.labels)) is not None:
            raise InvalidInput(
                f"{self.labels[0]!r} and the others are tags of tokens; give each {tags[0].kind} as one span of that label",
                field="data",
            )
        self.head, self.outputs = Tagging(labels=self.labels), 1 + len(self.labels)
        self._index = {label: i for i, label in enumerate(self.labels, 1)}

    def item(self, record: SpansRecord, sequences: tuple[Text, ...]) -> EncodedExample:
        """Make the example of one record; see `Task.item`."""
        classes = []
        for start, end in _offsets(sequences[0]):
            hit = next((s.label for s in record.spans if max(start, s.start) < min(end, s.end)), None)
            classes.append(0 if hit is None else self._index.get(hit, UNSEEN))
        gold = frozenset((s.start, s.end, s.label) for s in record.spans)
        return EncodedExample(
            sequences, torch.tensor(classes, dtype=torch.long), gold, "\n".join(sorted(record.names)), record.text
        )

    def loss(self, train: Tensor) -> Loss:
        """Make the loss; see `Task.loss`."""
        return _weighted_cross_entropy(train, self.outputs)

    def score(self, reference: Predictions, part: Predictions) -> float:
        """Score predictions; see `Task.score`."""
        classes = torch.split(part.outputs.argmax(-1), [len(item.target) for item in part.items])
        found = []
        for row, item in zip(classes, part.items, strict=True):
            offsets = _offsets(item.sequences[0])
            made = spans(item.text, offsets, row.tolist(), [1.0] * len(row), self.labels)
            found.append({(span["start"], span["end"], span["label"]) for span in made})
        return scores.micro_f1(found, [item.gold for item in part.items])

    def baseline(self, train: Sequence[EncodedExample], held_out: Sequence[EncodedExample]) -> float:
        """Score the trivial answer; see `Task.baseline`."""
        return scores.micro_f1([frozenset()] * len(held_out), [item.gold for item in held_out])


class RankingTask(Task[PairRecord]):
    """Ranking: both texts in one sequence; relevant if the output is above 0, a sigmoid above one half."""

    metric = "accuracy"

    def __init__(self, records: Sequence[PairRecord], pooling: Pooling) -> None:
        both_relations(records)
        self.head, self.outputs, self.pooling = Ranking(pooling=pooling), 1, pooling

    def item(self, record: PairRecord, sequences: tuple[Text, ...]) -> EncodedExample:
        """Make the example of one record; see `Task.item`."""
        return EncodedExample(sequences, torch.tensor([float(record.label)]), stratum=str(record.label))

    def loss(self, train: Tensor) -> Loss:
        """Make the loss; see `Task.loss`."""
        weight = ((len(train) - train.sum()) / train.sum().clamp(min=1)).sqrt().clamp(0.1, 10)
        return Loss(
            lambda outputs, target: functional.binary_cross_entropy_with_logits(
                outputs[:, 0], target, pos_weight=weight.to(outputs), reduction="sum"
            ),
            len,
        )

    def score(self, reference: Predictions, part: Predictions) -> float:
        """Score predictions; see `Task.score`."""
        return scores.accuracy((part.outputs[:, 0] > 0).float(), targets(part.items))

    def baseline(self, train: Sequence[EncodedExample], held_out: Sequence[EncodedExample]) -> float:
        """Score the trivial answer; see `Task.baseline`."""
        return scores.majority_accuracy(targets(train), targets(held_out))


def _offsets(text: Text) -> list[list[int]]:
    """List first and last character (exclusive) of each visible token."""
    assert text.offsets is not None
    offsets: list[list[int]] = text.offsets[visible(text)].tolist()
    return offsets


def _weighted_cross_entropy(train: Tensor, classes: int) -> Loss:
    # Weights by the square root of rarity: enough that rare labels are not ignored, without giving accuracy away.
    counts = torch.bincount(train, minlength=classes).float().clamp(min=1)
    weight = (counts.mean() / counts).sqrt().clamp(0.1, 10)

    def total(outputs: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(
            outputs, target, weight=weight.to(outputs), ignore_index=UNSEEN, reduction="sum"
        )

    return Loss(total, lambda target: float(weight[target[target != UNSEEN].cpu()].sum()))
