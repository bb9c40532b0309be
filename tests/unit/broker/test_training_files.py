"""What people have examples in: CSV of any spreadsheet, JSON arrays, labels that are numbers, more columns than needed."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.reading import Split, read
from fmplex_broker.examples.records import Record
from fmplex_broker.specs.fitting import FitHead

ROWS: list[dict[str, Any]] = [{"text": f"the {n}. text", "label": "ab"[n % 2]} for n in range(9)]
HARD = 'says "no", twice;\nand\tgoes on, \u2028 é'


def _examples(split: Split[Record]) -> list[dict[str, Any]]:
    return [e.record.model_dump(exclude_none=True) for e in [*split.train, *split.held_out]]


def _places(split: Split[Record]) -> list[str]:
    return [e.place for e in [*split.train, *split.held_out]]


def _csv(
    path: Path, rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\r\n", encoding: str = "utf-8"
) -> Path:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(file.getvalue().encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "delimiter", "end", "encoding"),
    [
        ("d.csv", ",", "\r\n", "utf-8"),
        ("d.CSV", ";", "\n", "utf-8-sig"),
        ("d.csv", "\t", "\n", "utf-8"),
        ("d.tsv", "\t", "\r\n", "utf-8-sig"),
        ("größe — 数据.csv", ",", "\n", "utf-8"),
    ],
)
def test_a_spreadsheet_is_read(tmp_path: Path, name: str, delimiter: str, end: str, encoding: str) -> None:
    rows = [*ROWS, {"text": HARD, "label": "a"}, {"text": "[URGENT] {x}", "label": "b"}]
    split = read(_csv(tmp_path / name, rows, delimiter, end, encoding), "classification", 0.3)
    assert _examples(split) == rows
    assert _places(split)[-2:] == ["line 11", "line 13"], "the quoted line break counts"


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read(tmp_path: Path, indent: int | None) -> None:
    (tmp_path / "d.json").write_text("\n " + json.dumps(ROWS, indent=indent))
    split = read(tmp_path / "d.json", "classification", 0.3)
    assert (_examples(split), _places(split)[0]) == (ROWS, "example 1")
    (tmp_path / "d.json").write_text(json.dumps([*ROWS, {"text": "", "label": "a"}]))
    with pytest.raises(InvalidInput, match="example 10: 'text': is empty"):
        read(tmp_path / "d.json", "classification", 0.3)
    (tmp_path / "d.json").write_text(json.dumps(ROWS, indent=2)[:-5])
    with pytest.raises(InvalidInput, match=r"begins like a JSON array, but is none .*at line \d+ column"):
        read(tmp_path / "d.json", "classification", 0.3)


def test_cells_are_what_the_head_learns_from(tmp_path: Path) -> None:
    def one(head: FitHead, **cells: str) -> dict[str, Any]:
        return _examples(read(_csv(tmp_path / "d.csv", [{"text": "a cat", **cells}] * 6), head, 1 / 3))[0]

    assert one("classification", label="3") == {"text": "a cat", "label": "3"}
    assert one("classification", label="x", text_pair="") == {"text": "a cat", "label": "x"}
    assert one("classification", labels="x; y")["labels"] == ("x", "y")
    assert one("classification", labels='["a, b"]')["labels"] == ("a, b",)
    assert one("classification", labels="")["labels"] == ()
    assert one("regression", value="-1.5e3")["value"] == -1500
    assert one("ranking", text_pair="b", label="1") == {"text": "a cat", "text_pair": "b", "label": 1}
    spans = json.dumps([{"start": 2, "end": 5, "label": 7, "text": "cat"}])
    assert one("tagging", spans=spans)["spans"] == ({"start": 2, "end": 5, "label": "7"},)


@pytest.mark.parametrize(
    ("head", "content", "message"),
    [
        ("classification", "a,b\n1,2\n", "its first line must name the columns, one of them 'text'; it is 'a,b'"),
        ("classification", "", "its first line must name the columns"),
        ("classification", "text,text\na,b\n", "its first line names a column twice"),
        ("classification", "text,label\na,x\nb\nc,x\n", "line 3: has 1 cells, but there are 2 columns"),
        ("classification", "text,label\na,x\nb, c,x\n", "line 3: has 3 cells"),
        ("classification", 'text,label\n"a\nb",x\n"c" d,x\n', "line 4: .*see to its quotes"),
        ("classification", 'text,label\na,x\n"c,x\nd,x', "line 3: unexpected end of data"),
        ("classification", "text,label\na,\n", "line 2: key 'label' is missing"),
        ("classification", 'text,labels\na,"x,y"\n', "line 2: 'labels': 'x,y' may be one label or several"),
        ("classification", "text,labels\na,[x\n", "line 2: 'labels': expected"),
        ("regression", 'text,value\na,"1,5"\n', "line 2: 'value': '1,5' is not a number"),
        ("regression", "text,value\na,nan\n", "line 2: 'value': 'nan' is not a number"),
        ("regression", "text,text_pair,value\na,b,1\n", "line 2: has 'text_pair', but"),
        ("tagging", "text,spans\na,x\n", "line 2: 'spans': expected value"),
        ("ranking", "text,text_pair,label\na,b,2\n", "line 2: 'label': "),
    ],
)
def test_a_bad_line_of_a_spreadsheet_is_named(tmp_path: Path, head: FitHead, content: str, message: str) -> None:
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(InvalidInput, match=message) as e:
        read(tmp_path / "d.csv", head, 0.3)
    assert e.value.field == "data"


def test_empty_rows_of_a_spreadsheet_are_no_examples_and_long_cells_are(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "", "label": ""}, {"text": "long " * 40_000, "label": "a"}, {"text": " ", "label": ""}]
    split = read(_csv(tmp_path / "d.csv", rows), "classification", 0.3)
    assert _examples(split) == [*ROWS, rows[10]]


def test_labels_may_be_numbers_and_truth_values(tmp_path: Path) -> None:
    def read_lines(head: FitHead, *rows: dict[str, Any]) -> list[dict[str, Any]]:
        (tmp_path / "d").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return _examples(read(tmp_path / "d", head, 1 / 3))

    labels = [3, True, False, -1, "3", 10**20]
    read_rows = read_lines("classification", *({"text": "a", "label": label} for label in labels))
    assert [row["label"] for row in read_rows] == ["3", "true", "false", "-1", "3", str(10**20)]
    assert read_lines("classification", *[{"text": "a", "labels": [1, 2]}] * 6)[0]["labels"] == ("1", "2")
    pairs = [{"text": "a", "text_pair": "b", "label": label} for label in (True, "1", 0, 1, "0", False)]
    assert [row["label"] for row in read_lines("similarity", *pairs)] == [1, 1, 0, 1, 0, 0]


def test_other_keys_are_left_alone_and_told(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_text("".join(json.dumps({"id": n, "text": "a", "label": "x", "value": None}) + "\n" for n in range(6)))
    split = read(path, "classification", 1 / 3)
    assert split.ignored == ("id", "value")
    assert _examples(split)[0] == {"text": "a", "label": "x"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"text": "a"}\n{"text": "caf\xe9"}\n', 2),
        (b'\xef\xbb\xbf{"text": "\xc3\xa9"}\n\n\n{"text": "\xff"}', 4),
        (b"\xef\xbb\xbf\n\n\xe9", 3),
        ('{"text": "a"}\n'.encode("utf-16"), 1),
    ],
)
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.json"])
def test_what_is_not_utf_8_is_named_by_its_line(tmp_path: Path, content: bytes, line: int, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"not UTF-8 text \(line {line}: byte 0x.*save it as UTF-8"):
        read(tmp_path / name, "classification", 0.3)


def _sorted_files() -> dict[str, tuple[FitHead, list[dict[str, Any]]]]:
    halves = [{"text": f"t{n}", "label": "ab"[n >= 30]} for n in range(60)]
    return {
        "two labels": ("classification", halves),
        "sorted twice": ("classification", halves + halves),
        "few of one": ("classification", [{"text": f"t{n}", "label": "ab"[n >= 8]} for n in range(60)]),
        "sets": ("classification", [{"text": "t", "labels": [["x"], ["y", "x"], []][n // 10]} for n in range(30)]),
        "relations": ("ranking", [{"text": "t", "text_pair": "u", "label": n // 10} for n in range(20)]),
        "rising": ("regression", [{"text": f"t{n}", "value": n // 3} for n in range(30)]),
        "falling": ("regression", [{"text": f"t{n}", "value": -n} for n in range(30)]),
        "groups": ("embedding", [{"text": f"t{n}", "label": f"g{n // 5}"} for n in range(60)]),
    }


@pytest.mark.parametrize("case", _sorted_files())
def test_a_sorted_file_is_refused_unless_it_is_shuffled(tmp_path: Path, case: str) -> None:
    head, rows = _sorted_files()[case]
    (tmp_path / "d").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        InvalidInput, match=r"sorted by label or value.*--shuffle, or shuffle=True; .* -o shuffle=true, or fit\.shuffle"
    ):
        read(tmp_path / "d", head, 1 / 3)
    split = read(tmp_path / "d", head, 1 / 3, shuffle=0)
    assert sorted(map(json.dumps, _examples(split))) == sorted(
        json.dumps({**row, "value": float(row["value"])} if "value" in row else row) for row in rows
    )
    assert _places(split) != [f"line {n}" for n in range(1, len(rows) + 1)]
    assert _places(split) == _places(read(tmp_path / "d", head, 1 / 3, shuffle=0)), "the seed decides"
    assert _places(split) != _places(read(tmp_path / "d", head, 1 / 3, shuffle=1))


def test_an_order_by_chance_is_taken(tmp_path: Path) -> None:
    """Also where one label is rare, where each has two examples, and where labels take turns."""
    dice = random.Random(0)
    for n in range(200):
        labels = [dice.choice("ab" if n % 2 else "aaaaaaaaaaaaaaab") for _ in range(dice.randrange(20, 60))]
        rows = [{"text": "t", "label": label} for label in labels] + [{"text": "t", "label": "a"}] * (n % 3)
        (tmp_path / "d").write_text("".join(json.dumps(row) + "\n" for row in rows))
        read(tmp_path / "d", "classification", 1 / 3)
