"""Reading data: what is right comes back as it was, what is wrong is named by its line."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.reading import read
from fmplex_broker.examples.records import LabelRecord, LabelsRecord
from fmplex_broker.specs.fitting import FitHead

HEADS: tuple[FitHead, ...] = get_args(FitHead)
GOOD: dict[str, dict[str, Any]] = {
    "classification": {"text": "a cat", "label": "x"},
    "regression": {"text": "a cat", "value": 1.5},
    "tagging": {"text": "a cat", "spans": [{"start": 2, "end": 5, "label": "x"}]},
    "similarity": {"text": "a cat", "text_pair": "a dog", "label": 1},
    "ranking": {"text": "a cat", "text_pair": "a dog", "label": 0},
    "embedding": {"text": "a cat", "label": "x"},
}
file_settings = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def _spans(*spans: tuple[int, int, str]) -> dict[str, Any]:
    return {"text": "a cat sat", "spans": [{"start": s, "end": e, "label": label} for s, e, label in spans]}


# What a bad line may be: head, the line, what the message says.
BAD: list[tuple[FitHead, object, str]] = [
    ("classification", "{not json", "not JSON"),
    ("classification", '{"text": "a", "label": "x"} more', "not JSON"),
    ("classification", '{"text": "\\ud800", "label": "x"}', "not JSON"),
    ("classification", "[" * 9000, "not JSON"),
    ("classification", "3", "not a JSON object"),
    ("classification", '["a", "x"]', "not a JSON object"),
    ("classification", {"text": "a"}, "key 'label' is missing"),
    ("classification", {"label": "x"}, "key 'text' is missing"),
    ("classification", {"text": "a", "label": "x", "labels": ["x"]}, "has 'label' and 'labels'; use one of them"),
    ("classification", {"text": "", "label": "x"}, "'text': is empty"),
    ("classification", {"text": " \t\n", "label": "x"}, "'text': is empty"),
    ("classification", {"text": 3, "label": "x"}, "'text': .*string"),
    (
        "classification",
        {"text": "a", "label": 3.0},
        "'label': is a number with a decimal point; write a text or a whole",
    ),
    ("classification", {"text": "a", "label": ""}, "'label': .*at least 1"),
    ("classification", {"text": "a", "label": None}, "'label': .*string"),
    ("classification", {"text": "a", "label": ["x"]}, "'label': .*string"),
    ("classification", {"text": "a", "text_pair": "", "label": "x"}, "'text_pair': is empty"),
    ("regression", {"text": "a", "value": "3"}, "'value': .*number"),
    ("regression", {"text": "a", "value": True}, "'value': .*number"),
    ("regression", '{"text": "a", "value": NaN}', "not JSON"),
    ("regression", '{"text": "a", "value": 1e999}', "'value': .*finite"),
    ("regression", '{"text": "a", "value": 1e99}', "'value': .*less than or equal"),
    (
        "regression",
        {"text": "a", "text_pair": "b", "value": 1},
        "has 'text_pair', but of regression an example is one text",
    ),
    (
        "embedding",
        {"text": "a", "text_pair": "b", "label": "x"},
        "has 'text_pair', but of embedding an example is one text",
    ),
    ("tagging", {"text": "a", "spans": 3}, "'spans': "),
    ("tagging", {"text": "a", "spans": [3]}, "'spans.0': not a JSON object"),
    ("tagging", {"text": "a", "spans": [{"start": 0, "end": 1}]}, "key 'spans.0.label' is missing"),
    ("tagging", {"text": "a", "spans": [{"start": 0.0, "end": 1, "label": "x"}]}, "'spans.0.start': "),
    ("tagging", _spans((-1, 2, "x")), "'spans.0.start': "),
    ("tagging", _spans((2, 10, "x")), "not inside the text, which has 9"),
    ("tagging", _spans((3, 3, "x")), "not inside"),
    ("tagging", _spans((4, 2, "x")), "not inside"),
    ("tagging", _spans((2, 5, "x"), (4, 9, "y")), r"span 4\.\.9 \('y'\) overlaps"),
    ("tagging", _spans((4, 9, "y"), (0, 5, "x")), "overlaps"),
    ("tagging", _spans((1, 2, "x")), "white space"),
    ("similarity", {"text": "a", "text_pair": "b", "label": 2}, "'label': "),
    ("similarity", {"text": "a", "text_pair": "b", "label": 0.5}, "'label': "),
    ("similarity", {"text": "a", "text_pair": "b", "label": "yes"}, "'label': "),
    ("ranking", {"text": "a", "label": 1}, "key 'text_pair' is missing"),
    ("ranking", {"text": "a", "text_pair": "b", "label": -1}, "'label': "),
    ("embedding", {"text": "a", "labels": ["x"]}, "key 'label' is missing"),
]


def _write(path: Path, *lines: object) -> Path:
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize(("head", "line", "message"), BAD)
def test_a_bad_line_is_named(tmp_path: Path, head: FitHead, line: object, message: str) -> None:
    path = _write(tmp_path / "d", *[GOOD[head]] * 5, "", line, *[GOOD[head]] * 5)
    with pytest.raises(InvalidInput, match=f"line 7: .*{message}") as e:
        read(path, head, 0.3)
    assert e.value.field == "data"
    assert e.value.message.count("line ") == 1


def test_ten_bad_lines_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    path = _write(tmp_path / "d", *["{"] * 14, GOOD["embedding"])
    with pytest.raises(InvalidInput) as e:
        read(path, "embedding", 0.3)
    assert "14 bad line(s)" in e.value.message
    assert [f"line {n}:" in e.value.message for n in (1, 10, 11)] == [True, True, False]
    assert "(and 4 more)" in e.value.message


def test_the_first_line_decides_between_label_and_labels(tmp_path: Path) -> None:
    one, many = {"text": "a", "label": "x"}, {"text": "a", "labels": ["x", "y"]}
    path = _write(tmp_path / "d", one, one, many, one)
    with pytest.raises(InvalidInput, match="line 3: has 'labels', but line 1 has 'label'"):
        read(path, "classification", 0.3)
    path = _write(tmp_path / "d", "{", many, one, many)
    with pytest.raises(InvalidInput, match=r"(?s)line 1: not JSON.*line 3: has 'label', but line 2 has 'labels'"):
        read(path, "classification", 0.3)
    for line, kind in ((one, LabelRecord), ({**many, "labels": []}, LabelsRecord)):
        split = read(_write(tmp_path / "d", *[line] * 6), "classification", 0.3)
        assert all(type(e.record) is kind for e in [*split.train, *split.held_out])


def test_labels_named_twice(tmp_path: Path) -> None:
    path = _write(tmp_path / "d", *[{"text": "a", "labels": ["x", "x"]}] * 6)
    with pytest.raises(InvalidInput, match="'labels': names a label twice"):
        read(path, "classification", 0.3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no examples"),
        (b"\n \n\r\n", "holds no examples"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8 text .line 1"),
        (gzip.compress(b"{}"), "not UTF-8 text"),
        (b'{"text": "a", "label": "x"}\n\xff', "not UTF-8 text .line 2"),
        (b"\x00" * 50, "binary"),
        ('{"text": "a", "label": "x"}\n'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_files_that_are_no_data(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as e:
        read(tmp_path / "d", "classification", 0.3)
    assert e.value.field == "data"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        read(tmp_path / "none", "classification", 0.3)
    with pytest.raises(InvalidInput, match="is not a file"):
        read(tmp_path, "classification", 0.3)


@pytest.mark.parametrize(
    ("count", "held_out", "fits"), [(6, 1 / 3, True), (5, 1 / 3, False), (9, 0.05, False), (20, 0.9, False)]
)
def test_too_few_examples(tmp_path: Path, count: int, held_out: float, fits: bool) -> None:
    path = _write(tmp_path / "d", *[GOOD["embedding"]] * count)
    if fits:
        assert [len(part) for part in read(path, "embedding", held_out)[:2]] == [4, 2]
        return
    with pytest.raises(InvalidInput, match="too few"):
        read(path, "embedding", held_out)


def test_windows_files_byte_order_marks_and_odd_line_ends(tmp_path: Path) -> None:
    line = json.dumps({"text": "a\u2028b\x85", "label": "x"}, ensure_ascii=False)
    (tmp_path / "d").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([line] * 6).encode())
    split = read(tmp_path / "d", "embedding", 1 / 3)
    assert [e.place for e in [*split.train, *split.held_out]] == [f"line {n}" for n in range(1, 7)]
    assert split.train[0].record.text == "a\u2028b\x85"


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
labels = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=256)


@st.composite
def tagged(draw: st.DrawFn) -> dict[str, Any]:
    text = draw(texts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)))))
    spans = [{"start": a, "end": b, "label": draw(labels)} for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    return {"text": text, "spans": [s for s in spans if text[cast(int, s["start"]) : cast(int, s["end"])].strip()]}


pairs = st.fixed_dictionaries({"text": texts, "text_pair": texts, "label": st.integers(0, 1)})
LINES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "classification": st.fixed_dictionaries({"text": texts, "label": labels}, optional={"text_pair": texts}),
    "regression": st.fixed_dictionaries(
        {"text": texts, "value": st.floats(-1e30, 1e30) | st.integers(-(10**9), 10**9)}
    ),
    "tagging": tagged(),
    "similarity": pairs,
    "ranking": pairs,
    "embedding": st.fixed_dictionaries({"text": texts, "label": labels}),
}


@pytest.mark.parametrize("head", HEADS)
@file_settings
@given(data=st.data())
def test_what_is_written_is_read(tmp_path: Path, head: FitHead, data: st.DataObject) -> None:
    lines = data.draw(st.lists(LINES[head], min_size=6, max_size=12))
    for line in lines[6:]:  # no label may be new in the held-out part
        line.update({key: lines[0][key] for key in ("label",) if key in line})
    path = _write(tmp_path / "d", *(json.dumps(line, ensure_ascii=data.draw(st.booleans())) for line in lines[:4] * 3))
    split = read(path, head, 1 / 3)
    seen = [e.record.model_dump(exclude_none=True) for e in [*split.train, *split.held_out]]
    assert json.loads(json.dumps(seen)) == lines[:4] * 3


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)
almost = st.dictionaries(st.sampled_from(["text", "label", "labels", "text_pair", "value", "spans"]), json_values)


@file_settings
@given(lines=st.lists(almost | json_values, max_size=8), junk=st.binary(max_size=20))
def test_nothing_but_a_clear_error_comes_of_junk(tmp_path: Path, lines: list[Any], junk: bytes) -> None:
    content = "\n".join(json.dumps(line) for line in lines).encode() + junk
    (tmp_path / "d").write_bytes(content)
    for head in HEADS:
        with contextlib.suppress(InvalidInput):
            read(tmp_path / "d", head, 0.3)
