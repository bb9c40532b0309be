"""What is wrong with a spec or its data is said by field and line, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import FmplexError, InvalidInput, NonFiniteOutput, TextTooLong
from fmplex_broker.packages.package import read_package
from fmplex_broker.specs.fitting import FitDone, FitEvent, FitSpec
from fmplex_worker.tuning import fit
from tests.support.tiny import save_model
from tests.unit.tuning.conftest import SpecFor


def _fit(spec: FitSpec) -> FitDone:
    return fit(spec, lambda _: None)


def _lines(*labels: str) -> list[dict[str, Any]]:
    return [{"text": "cat sat", "label": label} for label in labels]


TAGS = [{"start": 0, "end": 1, "label": "B-P"}, {"start": 2, "end": 3, "label": "I-P"}]
WRONG: dict[str, tuple[str, list[dict[str, Any]] | None, dict[str, Any], type[FmplexError], str | None, str]] = {
    "no such model": ("classification", None, {"model": "/no/such/model"}, InvalidInput, "model", "no such folder"),
    "one label": ("classification", _lines(*"aaaaaaaa"), {}, InvalidInput, "data", "only 1 label"),
    "sorted by label": ("classification", _lines(*"aaaabbbbcccc"), {}, InvalidInput, "data", "shuffle"),
    "too few": ("classification", _lines(*"abab"), {}, InvalidInput, "data", "too few"),
    "no spans": ("tagging", [{"text": "cat", "spans": []}] * 9, {}, InvalidInput, "data", "span"),
    "one relation": (
        "ranking", [{"text": "a", "text_pair": "b", "label": 1}] * 9, {}, InvalidInput, "data", "both 0 and 1",
    ),
    "one value": ("regression", [{"text": "a", "value": 2.0}] * 9, {}, InvalidInput, "data", "the same"),
    "lonely groups": ("embedding", _lines(*"abcdefabc"), {"lora": {"r": 2}}, InvalidInput, "data", "two of a group"),
    "too long": (
        "classification", [*_lines(*"abababab"), {"text": "cat " * 99, "label": "a"}], {}, TextTooLong, "data", r"line 9 \(101\)",
    ),
    "long label": ("classification", _lines("a" * 257, *"abababab"), {}, InvalidInput, "data", "line 1: 'label'"),
    "no such target": (
        "classification", None, {"lora": {"targets": ["q_proj"]}}, InvalidInput, "lora.targets", "q_proj.*query",
    ),
    "hidden layers of nothing": (
        "embedding", None, {"hidden": [4], "lora": {"r": 2}}, InvalidInput, "hidden", "no weights",
    ),
    "the pooler": (
        "classification", None, {"lora": {"targets": ["pooler.dense"]}}, InvalidInput, "lora.targets", "pooler",
    ),
    "tags of tokens": (
        "tagging", [{"text": "a b", "spans": TAGS}] * 9, {}, InvalidInput, "data", "one span",
    ),
    "more tokens than there are": ("classification", None, {"max_tokens": 100}, InvalidInput, "max_tokens", "66 tokens at most"),
    "longer than it is hosted": (
        "classification", [*_lines(*"abababab"), {"text": "cat " * 9, "label": "a"}], {"max_tokens": 8}, TextTooLong, "data",
        r"at most 8 tokens are taken.*line 9 \(11\).*truncate",
    ),
    "diverged": (
        "regression", None, {"lora": {"r": 2}, "learning_rate": 1e30}, NonFiniteOutput, "learning_rate", "diverged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_written(spec_for: SpecFor, case: str) -> None:
    head, lines, options, error, field, message = WRONG[case]
    spec = spec_for(head, lines, **options)
    with pytest.raises(error, match=message) as e:
        _fit(spec)
    assert e.value.field == field
    assert sorted(p.name for p in spec.data.parent.iterdir()) == ["data.jsonl"]


def test_more_than_ten_long_texts_are_counted(spec_for: SpecFor) -> None:
    lines = [{"text": "cat " * 99, "label": label} for label in "ab" * 8]
    with pytest.raises(TextTooLong, match=r"line 10 \(101\), \(and 6 more\)"):
        _fit(spec_for("classification", lines))


def test_models_that_serving_would_refuse(spec_for: SpecFor, tmp_path: Path) -> None:
    config = {"model_type": "gpt_neox", "architectures": ["GPTNeoXModel"]}
    (tmp_path / "neox").mkdir()
    (tmp_path / "neox" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match="not served") as e:
        _fit(spec_for("classification", model=str(tmp_path / "neox")))
    assert e.value.field == "model"
    llama = save_model("llama", tmp_path / "llama")
    with pytest.raises(InvalidInput, match="use 'last'") as e:
        _fit(spec_for("classification", model=str(llama), pooling="cls"))
    assert e.value.field == "pooling"


@pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert", "mpnet", "llama"])
def test_other_families_can_be_tuned(spec_for: SpecFor, tmp_path: Path, family: str) -> None:
    model = save_model(family, tmp_path / family)
    spec = spec_for("ranking", model=str(model), lora={"r": 2}, epochs=2, pooling="last")
    done = _fit(spec)
    assert read_package(spec.out).digest == done.artifact


def test_on_event_may_fail_without_harm(spec_for: SpecFor) -> None:
    def broken(event: FitEvent) -> None:
        raise RuntimeError("listener is gone")

    spec = spec_for("classification")
    with pytest.raises(RuntimeError, match="gone"):
        fit(spec, broken)
    assert not spec.out.exists()
