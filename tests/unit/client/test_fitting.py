"""`fit` with data in memory, its defaults, and what it says when they do not do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fmplex
from fmplex import fitting
from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fitting import FitDone, FitEvent, FitFailed, FitSpec
from tests.support.fleets import write_fleet

Seen = list[tuple[FitSpec, list[Any]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Specs that reach the trainer, with the lines of their data."""
    specs: Seen = []

    def trainer(given: list[FitSpec]) -> Iterator[FitEvent]:
        spec = given[0]
        specs.append((spec, [json.loads(line) for line in spec.data.read_text().splitlines()]))
        yield FitDone(name=spec.name, out=spec.out, artifact="0" * 16, metric="accuracy", score=1.0, baseline=0.5,
                      epochs=1, seconds=1.0)  # fmt: skip

    monkeypatch.setattr(fitting, "fit_all", trainer)
    return specs


@pytest.fixture(autouse=True)
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fleet(tmp_path / "configs" / "minilm.toml", {"name": "mini", "model": "org/mini"})
    monkeypatch.chdir(tmp_path)


SPAN = [{"start": 0, "end": 3, "label": "p"}]
TWO = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
SETS = [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": ["x", "y"]}]
VALUES = [{"text": "a", "value": 1.5}, {"text": "b", "value": 0.5}]
EXAMPLES: dict[str, tuple[Any, Any, list[dict[str, Any]]]] = {
    "labels": ("classification", [("a", "x"), ["b", "y"]], TWO),
    "several": ("classification", [("a", ["x", "y"]), ("b", {"y", "x"})], SETS),
    "mappings": ("classification", TWO, TWO),
    "values": ("regression", [("a", 1.5), ("b", np.float32(0.5))], VALUES),
    "pairs": ("ranking", [("a", "b", 1)], [{"text": "a", "text_pair": "b", "label": 1}]),
    "numpy": ("similarity", [("a", "b", np.int64(0))], [{"text": "a", "text_pair": "b", "label": 0}]),
    "spans": ("tagging", [("Ann", SPAN)], [{"text": "Ann", "spans": SPAN}]),
    "an iterator": ("classification", iter([("a", "x")]), TWO[:1]),
    "zip": ("classification", zip("ab", "xy", strict=True), TWO),
    "odd text": ("classification", [("a\n\u2028é", "x")], [{"text": "a\n\u2028é", "label": "x"}]),
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_examples_in_memory(seen: Seen, case: str) -> None:
    head, data, lines = EXAMPLES[case]
    fmplex.fit(data, name="v", head=head)
    [(spec, got)] = seen
    assert (got, spec.head) == (lines, head)
    assert not spec.data.exists()  # gone with its folder


def test_the_backbone_is_taken_as_the_fleet_file_hosts_it(seen: Seen, tmp_path: Path) -> None:
    hosted = {"name": "mini", "model": "org/mini", "revision": "abc", "dtype": "bfloat16", "max_tokens": 64}
    write_fleet(tmp_path / "configs" / "minilm.toml", hosted)
    fmplex.fit([("a", "x")], name="v", truncate=True)
    fmplex.fit([("a", "x")], name="v", max_tokens=32)
    fmplex.fit([("a", "x")], name="v", model="./elsewhere", backbone="mini")
    told = [(spec.revision, spec.dtype, spec.max_tokens, spec.truncate) for spec, _ in seen]
    assert told == [("abc", "bfloat16", 64, True), ("abc", "bfloat16", 32, False), (None, "float32", None, False)]


def test_defaults_come_from_the_fleet_file(seen: Seen, tmp_path: Path) -> None:
    (tmp_path / "spam.jsonl").write_text('{"text": "a", "label": "x"}\n')
    done = fmplex.fit("spam.jsonl", lora={"r": 4}, hidden=[8])
    spec = seen[0][0]
    assert (spec.name, spec.backbone, spec.model, spec.head) == ("spam", "mini", "org/mini", "classification")
    assert (spec.out, spec.data, spec.hidden) == (Path("vfms/spam"), Path("spam.jsonl"), (8,))
    assert spec.lora is not None
    assert spec.lora.r == 4
    assert (done.out, done.score) == (Path("vfms/spam"), 1.0)


def test_what_is_given_wins(seen: Seen) -> None:
    fmplex.fit([("a", "x")], name="v", backbone="b", model="/abs/model", out="here", config="none.toml")
    fmplex.fit([("a", "x")], name="v", model="/abs/model")
    assert [(s.backbone, s.model, s.out) for s, _ in seen] == [
        ("b", "/abs/model", Path("here")), ("mini", "/abs/model", Path("vfms/v")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my spam (v2).csv", "my-spam-v2"),
        ("données.été.jsonl", "donnees.ete"),
        ("数据.csv", "data-67677b3d"),
        ("отзывы-2.json", "2-105ce0d3"),
        ("…", "data-5111434a"),
        ("x" * 200 + ".csv", "x" * 100),
    ],
)
def test_a_file_of_any_name_makes_a_name(seen: Seen, file: str, name: str) -> None:
    Path(file).write_text('{"text": "a", "label": "x"}\n')
    fmplex.fit(file, shuffle=True)
    spec = FitSpec.model_validate_json(seen[0][0].model_dump_json())
    assert (spec.name, spec.data, spec.out, spec.shuffle) == (name, Path(file), Path("vfms") / name, True)


def test_a_file_name_that_is_not_utf_8_is_said(seen: Seen) -> None:
    with pytest.raises(InvalidInput, match="file's name is not UTF-8; rename it"):
        fmplex.fit(os.fsdecode(b"caf\xe9.csv"))


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no name": ({"data": [("a", "x")]}, "name", "give name="),
    "no fleet file": (
        {"data": [("a", "x")], "name": "v", "config": "none.toml"},
        "config",
        "none.toml: .* that the fleet was",
    ),
    "another backbone": ({"data": [("a", "x")], "name": "v", "backbone": "other"}, "backbone", "no backbone 'other'"),
    "an odd example": ({"data": [("a", "x"), 5], "name": "v"}, "data", "example 2 is a int"),
    "a long tuple": ({"data": [("a", "b", "c", "d")], "name": "v"}, "data", "example 1"),
    "an object": ({"data": [("a", object())], "name": "v"}, "data", "example 1 cannot be written"),
    "a typo": ({"data": [("a", "x")], "name": "v", "epohcs": 3}, "epohcs", "unknown key"),
    "a bad name": ({"data": [("a", "x")], "name": "../v"}, "name", "name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(seen: Seen, case: str) -> None:
    options, field, what = WRONG[case]
    with pytest.raises(InvalidInput, match=what) as caught:
        fmplex.fit(**options)
    assert caught.value.field == field
    assert seen == []


def test_nobody_reads_of_a_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(given: list[FitSpec]) -> Iterator[FitEvent]:
        yield FitFailed(
            name="v", code="invalid_input", message=f"{given[0].data}: 1 bad line(s)\nline 2: x", field="data"
        )

    monkeypatch.setattr(fitting, "fit_all", trainer)
    with pytest.raises(InvalidInput, match=r"^data: 1 bad line\(s\)\nline 2"):
        fmplex.fit([("a", "x")], name="v")
