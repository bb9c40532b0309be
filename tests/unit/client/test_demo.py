"""The demo's texts and its scores."""

from __future__ import annotations

from collections import Counter

import pytest

from fmplex.demo.scoring import needs_train, score
from fmplex.demo.tasks import TASKS, DemoTask, Examples, as_input, load_examples
from fmplex_broker.wire.tensors import Tensor


def test_there_are_enough_tasks_of_enough_kinds() -> None:
    assert len(TASKS) >= 12
    assert len({task.head for task in TASKS}) >= 4
    assert sum(task.lora > 0 for task in TASKS) >= 4


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_has_texts_and_none_of_the_held_out_ones_is_trained_on(task: DemoTask) -> None:
    examples = load_examples(task)
    count = len(examples.train) + len(examples.held_out)
    assert count >= 60
    assert len(examples.held_out) == pytest.approx(count / 3, abs=1)
    assert not {str(as_input(r)) for r in examples.train} & {str(as_input(r)) for r in examples.held_out}
    if task.head == "classification" and "label" in examples.train[0]:
        counts = Counter(row["label"] for row in examples.held_out)
        assert set(counts) == {row["label"] for row in examples.train}


def test_right_answers_score_one_and_the_baseline_is_the_most_frequent_label() -> None:
    rows = [{"text": "x", "label": label} for label in ("a", "a", "b", "a")]
    got = score(DemoTask("t", "classification"), Examples(rows[:3], rows), [], [{"label": r["label"]} for r in rows])
    assert (got.value, got.baseline) == (1.0, 0.75)


def test_spans_count_only_when_position_and_label_are_right() -> None:
    rows = [{"text": "Ann left", "spans": [{"start": 0, "end": 3, "label": "person"}]}]
    wrong = [{"spans": [{"start": 0, "end": 3, "label": "org"}]}]
    task = DemoTask("t", "tagging")
    assert score(task, Examples(rows, rows), [], rows).value == 1.0
    assert score(task, Examples(rows, rows), [], wrong).value == 0.0


def test_a_guess_of_the_mean_explains_nothing_and_the_truth_explains_all() -> None:
    rows = [{"text": "x", "value": v} for v in (1.0, 2.0, 3.0)]
    task = DemoTask("t", "regression")
    assert score(task, Examples(rows, rows), [], [{"value": 2.0}] * 3).value == pytest.approx(0.0)
    assert score(task, Examples(rows, rows), [], rows).value == pytest.approx(1.0)


def test_embeddings_are_scored_by_the_nearest_centre_of_the_training_groups() -> None:
    task = DemoTask("t", "embedding")
    east, north = ({"embedding": Tensor.of([1.0, 0.0])}, {"embedding": Tensor.of([0.0, 1.0])})
    rows = [{"text": "x", "label": "east"}, {"text": "y", "label": "north"}]
    assert needs_train(task)
    assert score(task, Examples(rows, rows), [east, north], [east, north]).value == 1.0
    assert score(task, Examples(rows, rows), [east, north], [north, east]).value == 0.0
