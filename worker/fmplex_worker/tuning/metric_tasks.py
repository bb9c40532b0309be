"""Heads without weights: what counts is where the pooled states lie. Without LoRA there is nothing to train, only to measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.records import GroupRecord, PairRecord
from fmplex_broker.specs.heads import Embedding, Pooling, Similarity
from fmplex_worker.backbones.texts import Raw, Text
from fmplex_worker.tuning import scores
from fmplex_worker.tuning.encoder import EncodedExample, targets
from fmplex_worker.tuning.tasks import UNSEEN, Loss, Predictions, Task, both_relations, several_labels

TEMPERATURE = 0.05


class EmbeddingTask(Task[GroupRecord]):
    """Embedding: texts of one group should lie together. Scored by the nearest centroid of the groups of the training part."""

    metric = "accuracy"
    outputs = 0

    def __init__(self, records: Sequence[GroupRecord], pooling: Pooling, contrast: bool) -> None:
        self.labels = several_labels(records)
        if contrast and max(Counter(record.label for record in records).values()) < 2:
            raise InvalidInput(
                "every group of the training part has one text only; LoRA needs two of a group", field="data"
            )
        self.head, self.pooling = Embedding(pooling=pooling), pooling
        self._index = {label: i for i, label in enumerate(self.labels)}

    def item(self, record: GroupRecord, sequences: tuple[Text, ...]) -> EncodedExample:
        """Make the example of one record; see `Task.item`."""
        return EncodedExample(sequences, torch.tensor([self._index.get(record.label, UNSEEN)]), stratum=record.label)

    def loss(self, train: Tensor) -> Loss:
        """Make the loss; see `Task.loss`."""
        return Loss(supervised_contrastive, lambda _: 1.0, divisible=False)

    def score(self, reference: Predictions, part: Predictions) -> float:
        """Score predictions; see `Task.score`."""
        points, known = functional.normalize(part.outputs, dim=-1), functional.normalize(reference.outputs, dim=-1)
        return scores.accuracy(scores.nearest_centroid(known, targets(reference.items), points), targets(part.items))

    def baseline(self, train: Sequence[EncodedExample], held_out: Sequence[EncodedExample]) -> float:
        """Score the trivial answer; see `Task.baseline`."""
        return scores.majority_accuracy(targets(train), targets(held_out))


class SimilarityTask(Task[PairRecord]):
    """Similarity: each text is encoded by itself; rows come in twos. The threshold serves the score only, it is not part of the
    package."""

    metric = "accuracy"
    outputs = 0

    def __init__(self, records: Sequence[PairRecord], pooling: Pooling) -> None:
        both_relations(records)
        self.head, self.pooling = Similarity(pooling=pooling), pooling

    def texts(self, record: PairRecord) -> tuple[Raw, ...]:
        """Return both texts, each by itself; see `Task.texts`."""
        return record.text, record.text_pair

    def item(self, record: PairRecord, sequences: tuple[Text, ...]) -> EncodedExample:
        """Make the example of one record; see `Task.item`."""
        return EncodedExample(sequences, torch.tensor([record.label]), stratum=str(record.label))

    def loss(self, train: Tensor) -> Loss:
        """Make the loss; see `Task.loss`."""
        return Loss(lambda outputs, target: cosent(cosines(outputs), target), lambda _: 1.0, divisible=False)

    def score(self, reference: Predictions, part: Predictions) -> float:
        """Score predictions; see `Task.score`."""
        threshold = scores.best_threshold(cosines(reference.outputs), targets(reference.items))
        return scores.accuracy((cosines(part.outputs) >= threshold).long(), targets(part.items))

    def baseline(self, train: Sequence[EncodedExample], held_out: Sequence[EncodedExample]) -> float:
        """Score the trivial answer; see `Task.baseline`."""
        return scores.majority_accuracy(targets(train), targets(held_out))


def cosines(rows: Tensor) -> Tensor:
    """Compute the cosine of each pair: [2n, hidden], the two texts of a pair one after the other, to [n]."""
    first, second = functional.normalize(rows, dim=-1).reshape(-1, 2, rows.shape[-1]).unbind(1)
    return (first * second).sum(-1)


def cosent(cosine: Tensor, target: Tensor) -> Tensor:
    """Compute the CoSENT loss: every pair of label 1 should have a higher cosine than every pair of label 0: log(1 + Σ exp((c₀
    − c₁)/τ)) over all such twos of the batch (CoSENT, Su 2022). It ranks, as one threshold for all pairs demands. Shapes [n]; 0
    if one label is missing."""
    differences = (cosine[target == 0][:, None] - cosine[target == 1][None, :]).flatten() / TEMPERATURE
    return torch.cat([differences.new_zeros(1), differences]).logsumexp(0)


def supervised_contrastive(rows: Tensor, groups: Tensor) -> Tensor:
    """Compute the supervised contrastive loss (Khosla et al. 2020, L_out): each row picks those of its group among all others
    of the batch. Rows without a partner are passed over; 0 if none has one. `rows` [n, hidden], `groups` [n]."""
    unit = functional.normalize(rows, dim=-1)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    logits = (unit @ unit.T / TEMPERATURE).masked_fill(itself, -1e9)
    partners = (groups[:, None] == groups[None, :]) & ~itself
    chosen = (logits.log_softmax(-1) * partners).sum(-1)
    anchors = partners.any(-1)
    return -(chosen / partners.sum(-1).clamp(min=1)).sum() / anchors.sum().clamp(min=1)
