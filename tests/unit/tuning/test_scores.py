"""The measures, against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmplex_worker.tuning import scores
from fmplex_worker.tuning.early import EarlyStopping, Verdict
from fmplex_worker.tuning.head import Head
from fmplex_worker.tuning.metric_tasks import cosent, cosines, supervised_contrastive

pairs = st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 1)), min_size=1, max_size=20)


@given(pairs)
def test_the_best_threshold_is_best(given_pairs: list[tuple[int, int]]) -> None:
    values = torch.tensor([float(score) for score, _ in given_pairs])
    truth = torch.tensor([label for _, label in given_pairs])

    def agreement(threshold: float) -> float:
        return scores.accuracy((values >= threshold).long(), truth)

    found = agreement(scores.best_threshold(values, truth))
    assert found == pytest.approx(max(agreement(t / 2) for t in range(-13, 14)))


def test_constant_answers() -> None:
    train, held = torch.tensor([1, 1, 0, 2]), torch.tensor([1, 0, 1, -1])
    assert scores.majority_accuracy(train, held) == 0.5
    sets = [frozenset("ab"), frozenset("a"), frozenset("a"), frozenset[str]()]
    assert scores.constant_set_f1(sets, [frozenset("a"), frozenset("ab")]) == pytest.approx(2 * 2 / 5)
    # Most texts have no label at all: the most frequent label still says something.
    assert scores.constant_set_f1([frozenset(), frozenset(), frozenset("a")], [frozenset("a")]) == 1.0
    assert scores.constant_set_f1([frozenset()], [frozenset("a")]) == 0.0


def test_r2_of_the_training_mean_is_zero() -> None:
    held = torch.tensor([1.0, 2.0, 6.0])
    assert scores.r2(torch.full((3,), 2.5), held, 2.5) == 0
    assert scores.r2(held, held, 2.5) == 1
    assert scores.r2(torch.tensor([2.5]), torch.tensor([2.5]), 2.5) == 1
    assert scores.r2(torch.tensor([2.0]), torch.tensor([2.5]), 2.5) == 0


def test_set_f1() -> None:
    assert scores.micro_f1([{1, 2}, set()], [{2, 3}, {4}]) == pytest.approx(2 / 5)
    assert scores.micro_f1([set()], [set()]) == 1.0


def test_nearest_centroid_goes_by_direction() -> None:
    reference = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    groups = torch.tensor([7, 7, 3])
    points = torch.tensor([[10.0, 1.0], [0.1, 0.4]])
    assert scores.nearest_centroid(reference, groups, points).tolist() == [7, 3]


def test_losses_fall_where_they_should() -> None:
    near, far = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    target = torch.tensor([1, 0])
    assert cosent(near, target) < cosent(far, target)
    assert cosent(near, torch.tensor([1, 1])) == 0
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    good, bad = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert supervised_contrastive(rows, good) < supervised_contrastive(rows, bad)
    assert supervised_contrastive(rows, torch.arange(4)) == 0
    assert torch.allclose(cosines(rows), torch.cosine_similarity(rows[::2], rows[1::2]))


def test_a_folded_head_is_the_same_function() -> None:
    torch.manual_seed(0)
    rows = torch.randn(20, 8) * torch.tensor([1e-3, 1, 1, 1, 1, 1, 1, 100.0]) + 5
    head = Head(rows, 3, (10.0, 0.5))
    torch.nn.init.normal_(head.linear.weight)
    folded = head.folded()
    expected = head(rows)
    assert torch.allclose(rows @ folded["weight"].T + folded["bias"], expected, rtol=1e-3, atol=1e-3)


def test_the_stopper_prefers_scores_and_then_losses() -> None:
    stopper, state = EarlyStopping(2), torch.zeros(1)
    for epoch, (score, loss, stops) in enumerate(
        [(0.5, 1.0, False), (0.5, 0.9, False), (0.4, 0.1, False), (0.5, 0.9, True)], 1
    ):
        state.fill_(epoch)
        assert stopper.note(epoch, Verdict(score, loss), {"epoch": state}) == (epoch <= 2)
        assert stopper.stopped == stops
    assert stopper.best == 2
    assert stopper.state["epoch"] == 2
