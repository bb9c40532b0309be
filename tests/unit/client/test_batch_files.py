"""Files of batches: whatever texts there are, the fleet gets just those, each on the line that it has in the user's file."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex import InvalidInput, Unavailable
from fmplex.batches.building import InputFile, prepare
from fmplex.batches.rows import Rows

TEXTS = st.lists(st.text(max_size=20), min_size=1, max_size=20)
# What `str.splitlines` takes for the end of a line, and files do not.
ODD = st.text(alphabet='ab,;"\t\x0b\x0c\x1c\x85\u2028\u2029\0 Ж🙂', max_size=12)


def lines(source: InputFile) -> dict[int, tuple[str, Any]]:
    """The lines of a file that are not blank, by number: their ids and inputs."""
    with source:
        source.file.seek(0)
        found = enumerate(source.file.read().split(b"\n"), 1)
        asked = {number: json.loads(raw) for number, raw in found if raw}
    return {number: (line["custom_id"], *line["body"]["inputs"]) for number, line in asked.items()}


@given(TEXTS)
def test_a_list_is_sent_as_it_is(texts: list[str]) -> None:
    assert lines(prepare(texts, "v", {}, "text")) == {n: (f"line-{n}", text) for n, text in enumerate(texts, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(texts=st.lists(ODD, min_size=1, max_size=12), end=st.sampled_from(["\n", "\r\n"]))
def test_lines_of_a_file_are_those_between_line_feeds(folder: Path, texts: list[str], end: str) -> None:
    (folder / "a.txt").write_bytes(end.join([*texts, "last"]).encode())
    wanted = {n: (f"line-{n}", text) for n, text in enumerate([*texts, "last"], 1) if text.strip()}
    assert lines(prepare(folder / "a.txt", "v", {}, "text")) == wanted


@given(rows=st.lists(st.tuples(ODD, st.text(alphabet='ab,"\r\n', max_size=8)), min_size=1, max_size=12))
def test_rows_of_a_table_have_the_number_of_their_first_line(folder: Path, rows: list[tuple[str, str]]) -> None:
    wanted, number = {}, 2
    written = ["text,other\n"]
    for text, other in [*rows, ("last", "")]:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow([text, other])
        written.append(out.getvalue())
        if text.strip() or other.strip():
            wanted[number] = (f"line-{number}", text)
        number += _lines(out.getvalue())
    (folder / "a.csv").write_bytes("".join(written).encode())
    assert lines(prepare(folder / "a.csv", "v", {}, "text")) == wanted


def _lines(text: str) -> int:
    return text.replace("\r\n", "\n").replace("\r", "\n").count("\n")


def test_what_is_no_json_is_refused_and_named() -> None:
    for value, field in ((object(), "inputs.1"), ({"a": {1, 2}}, "inputs.1")):
        with pytest.raises(InvalidInput, match="this is none") as caught:
            prepare(["fine", value], "v", {}, "text")
        assert caught.value.field == field
    with pytest.raises(InvalidInput, match="give a list, an iterator or a path"):
        prepare({"text": "a"}, "v", {}, "text")


@pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
def test_rows_are_read_in_the_order_of_their_lines(last: bool) -> None:
    numbers = random.Random(7).sample(range(1, 1000), 300)
    with Rows() as rows:
        for part in (numbers[:200], numbers[200:]):
            file = rows.add()
            for n in part:
                row = {
                    "custom_id": f"{n}",
                    "response": {"body": {"vfm": "v", "outputs": ['"line":7}'], "usage": {"units": 1}}},
                }
                row = {**row, "line": n} if last else {"line": n, **row}
                file.write(json.dumps(row).encode() + b"\n")
        rows.index()
        assert (len(rows), [result.line for result in rows]) == (300, sorted(numbers))
        assert {result.output for result in rows} == {'"line":7}'}


def test_files_of_something_else_are_told() -> None:
    with Rows() as rows:
        rows.add().write(b'{"custom_id": "a"}\n')
        with pytest.raises(Unavailable, match="not those of an FMplex gateway"):
            rows.index()
