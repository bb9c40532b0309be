"""What a gateway says of training data before it is queued: what the worker would say, in the names of the API."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples import checking
from fmplex_broker.examples.checking import DataFile, check_examples, check_texts, head_of
from fmplex_broker.examples.files import Row, rows_of
from fmplex_broker.specs.fitting import FitHead

LABELLED = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(12)]
PAIRS = [{"text": "a", "text_pair": "b", "label": n % 2} for n in range(12)]
CHAT = {"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]}


def data(*lines: Any, name: str = "d.jsonl") -> DataFile:
    raw = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    return DataFile(rows_of(io.BytesIO(raw), name), name)


def check(head: FitHead, training: DataFile, validation: DataFile | None = None, **more: Any) -> int:
    return check_examples(head, training, validation, **{"held_out": 1 / 3, "shuffle": None, **more})


def refused(
    head: FitHead, training: DataFile, validation: DataFile | None = None, **more: Any
) -> tuple[str | None, str]:
    with pytest.raises(InvalidInput) as e:
        check(head, training, validation, **more)
    return e.value.field, e.value.message


def test_good_data_is_counted() -> None:
    assert check("classification", data(*LABELLED)) == 12
    assert check("classification", data(*LABELLED), data(*LABELLED[:1])) == 12
    assert check("similarity", data(*PAIRS)) == 12
    assert check_texts(data(CHAT, CHAT, {"text": "a"}), data(CHAT)) == 3


def test_a_bad_line_names_the_file() -> None:
    assert refused("classification", data(*LABELLED, {"text": "x"})) == (
        "training_file", "d.jsonl: 1 bad line(s)\nline 13: key 'label' is missing",
    )  # fmt: skip
    field, message = refused("classification", data(*LABELLED), data("{", name="v.jsonl"))
    assert (field, message.startswith("v.jsonl: 1 bad line(s)\nline 1: not JSON")) == ("validation_file", True)
    with pytest.raises(InvalidInput, match="line 2: nothing to learn") as e:
        check_texts(data(CHAT, CHAT), data(CHAT, {"messages": CHAT["messages"][::-1]}))
    assert e.value.field == "validation_file"


def test_both_files_are_of_one_kind() -> None:
    several = [{"text": "a", "labels": ["a"]}]
    field, message = refused("classification", data(*LABELLED), data(*several))
    assert field == "validation_file"
    assert "line 1: has 'labels', but line 1 of the file to train on has 'label'" in message


@pytest.mark.parametrize(
    ("head", "training", "strange"),
    [
        ("classification", LABELLED, {"label": "x"}),
        ("classification", [{"text": "a", "labels": ["a", "b"]}, {"text": "a", "labels": []}] * 6, {"labels": ["a", "x"]}),
        ("tagging", [{"text": "a", "spans": [{"start": 0, "end": 1, "label": s}]} for s in "abbaaabba"],
         {"spans": [{"start": 0, "end": 1, "label": "x"}]}),
    ],
)  # fmt: skip
def test_labels_that_only_validate_are_named(head: FitHead, training: list[Any], strange: dict[str, Any]) -> None:
    validation = data(training[0], *[{"text": "a", **strange}] * 12, name="v.jsonl")
    field, message = refused(head, data(*training), validation)
    assert (field, message.splitlines()[:2]) == (
        "validation_file",
        ["v.jsonl: 12 bad line(s)", "line 2: label(s) ['x'], which no example to train on has"],
    )
    assert message.endswith("(and 2 more)")


def test_texts_of_one_label_belong_together_whatever_it_is_called() -> None:
    assert check("embedding", data(*LABELLED), data({"text": "a", "label": "x"})) == 12


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": []}, "'messages': at least 1 must be given, not 0"),
        ({"messages": CHAT["messages"][:1]}, "nothing to learn: the last message is of the user"),
        ({"messages": CHAT["messages"][1:]}, "an answer to nothing"),
        ({**CHAT, "tools": []}, "has 'tools': calls of tools are not taught"),
        ({**CHAT, "functions": []}, "has 'functions'"),
        ({"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "name": "x"}]}, "'messages.1.name': unknown key"),
        ({"text": "a", "label": "b"}, "'label': unknown key; remove it"),
    ],
)
def test_what_is_wrong_with_a_conversation_is_said(row: Any, what: str) -> None:
    with pytest.raises(InvalidInput) as e:
        check_texts(data(CHAT, row, CHAT), None)
    assert f"line 2: {what}" in e.value.message


@pytest.mark.parametrize(
    ("head", "lines", "what"),
    [
        ("classification", LABELLED[:3], "too few examples"),
        ("classification", sorted(LABELLED, key=lambda row: row["label"]), "seems sorted"),
        ("classification", [*LABELLED[::2], *LABELLED[1::2]], "seems sorted"),
        ("regression", [{"text": "a", "value": 1}] * 9, "nothing to learn"),
        ("tagging", [{"text": "a", "spans": []}] * 9, "has a span"),
        ("classification", [], "holds no examples"),
    ],
)
def test_what_is_wrong_with_all_of_it(head: FitHead, lines: list[Any], what: str) -> None:
    field, message = refused(head, data(*lines))
    assert (field, what in message) == ("training_file", True), message


def test_one_label_is_nothing_to_learn() -> None:
    lines = [{"text": "a", "label": "x"}] * 9
    assert "only 1 label(s) ['x']" in refused("embedding", data(*lines), shuffle=0)[1]
    assert "only pairs of label 1" in refused("ranking", data(*[{**PAIRS[1], "label": 1}] * 9), shuffle=0)[1]


def test_a_shuffle_mixes_what_is_sorted() -> None:
    assert check("classification", data(*sorted(LABELLED, key=lambda row: row["label"])), shuffle=3) == 12


def test_too_many_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MOST_EXAMPLES", 11)
    assert "more than 11 examples" in refused("classification", data(*LABELLED))[1]


def test_long_lines_and_arrays_are_bounded() -> None:
    def rows(raw: bytes) -> Iterator[Row]:
        return rows_of(io.BytesIO(raw), "d", 40)

    short = b'{"text": "a"}\n'
    assert len(list(rows(short * 9))) == 9
    with pytest.raises(InvalidInput, match="line 2 has more than 40 bytes"):
        list(rows(short + b'{"text": "' + b"a" * 50 + b'"}\n'))
    with pytest.raises(InvalidInput, match="an array has at most 40 bytes here; write JSON lines"):
        list(rows(b"[\n" + b'{"text": "a"},\n' * 9 + b"]"))


@pytest.mark.parametrize(
    ("row", "head"),
    [(CHAT, "generation"), ({"text": "a"}, "generation"), (LABELLED[0], "classification"), (3, "classification")],
)
def test_the_head_that_a_file_is_for(row: Any, head: str) -> None:
    assert head_of(row) == head
