"""What fails a batch as a whole, and what does not."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_gateway import turns
from fmplex_gateway.batches import validating
from fmplex_gateway.batches.validating import MOST_ERRORS, MOST_LINES, Checked, check_file

BOM = b"\xef\xbb\xbf"


def call(custom_id: Any, **more: Any) -> bytes:
    value = {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": {"model": "v", "input": "x"}}
    return json.dumps(value | more).encode()


def checked(data: bytes) -> Checked:
    return check_file(io.BytesIO(data))


def codes(data: bytes) -> list[tuple[str, int | None]]:
    return [(error.code, error.line) for error in checked(data).errors]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("begin", [b"", BOM])
@pytest.mark.parametrize("last", [True, False])
def test_a_file_of_lines_is_counted(begin: bytes, end: bytes, last: bool) -> None:
    data = begin + end.join([call("a"), b"", call("b"), b"  ", call("c")]) + (end if last else b"")
    assert checked(data) == (3, [])


@pytest.mark.parametrize(
    "wrong",
    [
        b"not json",
        b"{}",
        b"[1, 2]",
        b"[",
        b"caf\xe9",
        b"\0",
        call(None),
        call("a\0b"),
        call("b", method="GET"),
        call("b", url="/v1/models"),
        call("b", body=None),
        call("b", body={"stream": True, "n": 7}),
        b"x" * (5 << 20),
    ],
    ids=range(13),
)
def test_what_is_wrong_with_one_line_fails_no_batch(wrong: bytes) -> None:
    for lines in ([wrong, call("a")], [call("a"), wrong], [call("a"), wrong, call("c")]):
        assert checked(b"\n".join(lines)) == (len(lines), [])


def test_a_file_of_wrong_lines_only_is_no_wrong_file() -> None:
    assert checked(b"[1]\n[2]\n") == (2, [])
    assert checked(b"nothing") == (1, [])
    assert checked(b"{\n}") == (2, [])


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n\r\n", b" \n\t\n", BOM, BOM + b"\n"])
def test_an_empty_file(data: bytes) -> None:
    assert codes(data) == [("empty_file", None)]
    assert checked(data).total == 0


def test_ids_that_are_there_twice_name_both_lines() -> None:
    data = b"\n".join([call("a"), b"", call("b"), call("a"), b"oops", call("b"), call("a", url="/v1/models")])
    found = checked(data)
    assert found.total == 6
    assert [(e.code, e.line, e.param) for e in found.errors] == [
        ("duplicate_custom_id", line, "custom_id") for line in (4, 6, 7)
    ]
    assert [e.message[10:26] for e in found.errors] == ["'a' is on line 1", "'b' is on line 3", "'a' is on line 1"]


def test_ids_are_the_same_however_they_are_written() -> None:
    assert codes(b'{"custom_id": "\\u00e9"}\n{"custom_id": "\xc3\xa9"}') == [("duplicate_custom_id", 2)]
    assert codes(b'{"custom_id": "1"}\n{"custom_id": 1}\n{"custom_id": 1}\n{"custom_id": "1 "}') == []


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=3), min_size=1, max_size=40)
)
def test_every_line_after_the_first_of_its_id_is_told(ids: list[str]) -> None:
    again = [number for number, one in enumerate(ids, 1) if one in ids[: number - 1]]
    assert codes(b"\n".join(call(one) for one in ids)) == [("duplicate_custom_id", line) for line in again]


def test_of_very_many_the_others_are_counted() -> None:
    found = checked(b"\n".join([call("a")] * (MOST_ERRORS + 31))).errors
    assert len(found) == MOST_ERRORS + 1
    assert (found[-1].line, found[-1].message.split()[0]) == (None, "30")


def rows(count: int) -> Iterator[bytes]:
    return (call(f"request-{i}") + b"\n" for i in range(count))


def test_as_many_lines_as_may_and_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_LINES == 50_000
    most, blank = 60, b"\n"
    monkeypatch.setattr(validating, "MOST_LINES", most)
    assert checked(blank + b"".join(rows(most)) + blank) == (most, [])
    assert codes(blank + b"".join(rows(most + 9))) == [("too_many_tasks", most + 2)]
    twice = call("request-7") + blank + b"".join(rows(most))
    assert codes(twice) == [("duplicate_custom_id", 9), ("too_many_tasks", most + 1)]


def test_fifty_thousand_lines_and_one() -> None:
    found = checked(b"".join(rows(MOST_LINES + 1)))
    assert [(error.code, error.line) for error in found.errors] == [("too_many_tasks", MOST_LINES + 1)]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("batch.jsonl", call("a"))
    return file.getvalue()


ARRAY = [json.loads(call("a")), json.loads(call("b"))]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(call("a")), "gzip"),
        (zipped(), "zip"),
        (call("a").decode().encode("utf-16"), "UTF-16"),
        (call("a").decode().encode("utf-16-le"), "UTF-16"),
        (call("a").decode().encode("utf-16-be"), "UTF-16"),
        (b"PAR1\x15\x04\n", "Parquet"),
        (json.dumps(ARRAY).encode(), "JSON array"),
        (json.dumps(ARRAY, indent=1).encode(), "JSON array"),
        (BOM + b" [" + call("a") + b",\n" + call("b") + b"]\n", "JSON array"),
        (b"[\n" + call("a") + b",\n" + call("b") + b"\n]\n", "JSON array"),
        (b"[" + b",".join(rows(50)).replace(b"\n", b"") * 999 + b"]", "JSON array"),
    ],
    ids=range(11),
)
def test_a_file_of_another_kind_is_told_as_what_it_is(data: bytes, says: str) -> None:
    [error] = checked(data).errors
    assert (error.code, error.line) == ("invalid_file", 1)
    assert says in error.message


def test_the_memory_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_REST_S", 0)

    class Long(io.RawIOBase):
        """Forty megabytes: lines, one of twenty megabytes, and one that is blank over and over."""

        def __init__(self) -> None:
            line = call("a", body={"input": "x" * 20_000}) + b"\n"
            self._parts = iter([line] * 1000 + [b"y" * (1 << 20)] * 20 + [b"\n"] + [b"\n" * (1 << 17)] * 2)

        def read(self, size: int = -1) -> bytes:
            return next(self._parts, b"")

    tracemalloc.start()
    try:
        assert check_file(Long()).total == 1001  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
