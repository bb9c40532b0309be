"""Pure measures, all of them "higher is better". Empty inputs never divide by zero."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor


def accuracy(predicted: Tensor, target: Tensor) -> float:
    """Compute the share of equal entries of two [n] tensors."""
    return float((predicted == target).double().mean())


def majority_accuracy(train: Tensor, target: Tensor) -> float:
    """Compute the accuracy on `target` of always answering the most frequent value of `train`; both [n]. Ties: the smallest
    value."""
    values, counts = train.unique(return_counts=True)
    return accuracy(values[counts.argmax()].expand_as(target), target)


def r2(predicted: Tensor, target: Tensor, train_mean: float) -> float:
    """Compute R²: 1 − squared error over the squared error of always answering the training mean ("out-of-sample R²", Campbell &
    Thompson 2008), so that this answer scores exactly 0. Shapes [n]."""
    residual = float((predicted.double() - target.double()).square().sum())
    total = float((target.double() - train_mean).square().sum())
    if total == 0:
        return float(residual == 0)
    return 1 - residual / total


def micro_f1(predicted: Sequence[AbstractSet[Hashable]], gold: Sequence[AbstractSet[Hashable]]) -> float:
    """Compute F1 over the members of all sets together: label sets (micro-F1) or sets of spans (span-F1). Nothing to find and
    nothing found is 1."""
    hits = sum(len(p & g) for p, g in zip(predicted, gold, strict=True))
    total = sum(len(p) + len(g) for p, g in zip(predicted, gold, strict=True))
    return 2 * hits / total if total else 1.0


def constant_set_f1(train: Sequence[frozenset[str]], gold: Sequence[frozenset[str]]) -> float:
    """Compute micro-F1 of the better of two constant answers: the most frequent set, the most frequent single label of
    `train`."""
    sets = Counter(sorted(train, key=sorted))
    singles = Counter(label for labels in train for label in sorted(labels))
    answers = [sets.most_common(1)[0][0], frozenset(label for label, _ in singles.most_common(1))]
    return max(micro_f1([answer] * len(gold), gold) for answer in answers)


def best_threshold(scores: Tensor, target: Tensor) -> float:
    """Find the threshold t for which "score ≥ t" agrees best with `target` (0/1); both [n]. Half way between two neighbours."""
    order = scores.argsort(stable=True)
    ordered, truth = scores[order].double(), target[order].double()
    # Cut before position i: everything below is answered 0, the rest 1.
    below = torch.cat([truth.new_zeros(1), (1 - truth).cumsum(0)])
    above = torch.cat([truth.new_zeros(1), truth.cumsum(0)])
    right = below + (above[-1] - above)
    right[1:-1][ordered[1:] == ordered[:-1]] = -1  # equal scores cannot be told apart
    cut = int(right.argmax())
    if cut == 0:
        return float(ordered[0]) - 1.0
    if cut == len(ordered):
        return float(ordered[-1]) + 1.0
    return float(ordered[cut - 1] + ordered[cut]) / 2


def nearest_centroid(reference: Tensor, groups: Tensor, points: Tensor) -> Tensor:
    """Find for each of `points` [n, d] the group whose mean of `reference` [m, d] is nearest by cosine. `groups` [m]; gives
    [n]."""
    names, index = groups.unique(return_inverse=True)
    sums = reference.new_zeros(len(names), reference.shape[1]).index_add_(0, index, reference)
    nearest: Tensor = names[(points @ torch.nn.functional.normalize(sums, dim=-1).T).argmax(-1)]
    return nearest
