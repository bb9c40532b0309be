"""The lines of a batch: what is read from a file, and what is written to one."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import (
    DeadlineExceeded,
    FmplexError,
    InvalidInput,
    JobFailed,
    RateLimited,
    TextTooLong,
    UnknownVfm,
)
from fmplex_broker.wire.tensors import Tensor
from fmplex_gateway.answers import CHAT, COMPLETIONS, EMBEDDINGS, ENDPOINTS, INFER, Answer
from fmplex_gateway.batches import lines
from fmplex_gateway.batches.errors import BatchCancelled, BatchExpired, InputFileDeleted, LineError, NotRun
from fmplex_gateway.batches.lines import (
    MOST_LINE_BYTES,
    Line,
    RawLine,
    custom_id_of,
    error_row,
    output_row,
    raw_lines,
    read_line,
)
from fmplex_gateway.parsing import MOST_CONTAINERS

BOM = b"\xef\xbb\xbf"
MODEL = {"model": "v"}
SPAM = "/v1/vfms/spam/infer"
ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=512)
plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def written(custom_id: Any = "one", url: Any = EMBEDDINGS, body: Any = MODEL, **more: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more}).encode()


def refused(raw: bytes, endpoint: str = EMBEDDINGS) -> LineError:
    with pytest.raises(LineError) as caught:
        read_line(raw, 7, endpoint)
    assert caught.value.line == 7
    return caught.value


# --- lines of a file --------------------------------------------------------------------------------------------------


class Dripping(io.BytesIO):
    """A file that gives a few bytes at a time, as stores may."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        super().__init__(data)
        self._sizes = iter(sizes)

    def read(self, size: int | None = -1) -> bytes:
        return super().read(next(self._sizes, size))


@given(
    st.lists(st.binary(max_size=12) | st.sampled_from([b"", b" ", b"\r", BOM, b"{}\r", BOM + b"{}"]), max_size=9),
    st.lists(st.integers(1, 5), max_size=40),
    st.booleans(),
)
def test_lines_are_the_lines_of_the_file_but_blank_ones(parts: list[bytes], sizes: list[int], ended: bool) -> None:
    data = b"\n".join(parts) + (b"\n" if ended and parts else b"")
    wanted = [(i, part) for i, part in enumerate(data.split(b"\n"), 1) if part.removeprefix(BOM).strip()]
    got = list(raw_lines(Dripping(data, sizes)))
    assert [(line.number, line.data) for line in got] == wanted
    assert [line.index for line in got] == list(range(len(wanted)))


@pytest.mark.parametrize("over", [0, 1, 3_000_000])
def test_of_a_line_that_is_too_long_no_more_is_held_than_shows_it(over: int) -> None:
    long = b"x" * (MOST_LINE_BYTES + over)
    [before, line, after] = raw_lines(io.BytesIO(b"{}\n" + long + b"\n{}"))
    assert (before.data, after, line.number) == (b"{}", RawLine(2, 3, b"{}"), 2)
    assert len(line.data) == MOST_LINE_BYTES + min(over, 1)
    assert custom_id_of(line.data) is None
    assert refused(line.data).code == ("line_too_long" if over else "invalid_json_line")


# --- reading a line ---------------------------------------------------------------------------------------------------


@given(ids, st.dictionaries(st.text(max_size=5), plain, max_size=4), st.integers(1), st.booleans(), st.booleans())
def test_a_line_is_read_as_it_was_written(
    custom_id: str, body: dict[str, Any], number: int, escaped: bool, odd: bool
) -> None:
    body = {key: value for key, value in body.items() if key not in ("n", "stream")}
    value = {"custom_id": custom_id, "method": "POST", "url": EMBEDDINGS, "body": body, "added": odd}
    raw = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    if odd:
        raw = BOM + b"  " + raw + b" \r"
    assert read_line(raw, number, EMBEDDINGS) == Line(number, custom_id, EMBEDDINGS, body)
    assert custom_id_of(raw) == custom_id


@given(st.binary(max_size=60) | plain.map(lambda value: json.dumps(value).encode()))
def test_whatever_stands_on_a_line_is_read_or_refused(raw: bytes) -> None:
    assert refused(raw).code in ("invalid_json_line", "missing_custom_id", "invalid_custom_id", "url_mismatch")
    custom_id_of(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"not json",
        b'{"custom_id": "a"',
        b'{"custom_id": "a"} {}',
        b"[]",
        b"null",
        b'"text"',
        b"17",
        b'{"custom_id": "a", "body": NaN}',
        b'{"custom_id": "a", "body": -Infinity}',
        b'{"custom_id": "a\x00b"}',
        b'{"custom_id": "a"}\x00',
        b"\x00",
        b'{"custom_id": "caf\xe9"}',
        '{"custom_id": "a"}'.encode("utf-16-le"),
        '{"custom_id": "a"}'.encode("utf-32-le"),
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"custom_id": ' + b"9" * 5_000 + b"}",
        BOM + BOM + b"{}",
    ],
    ids=range(19),
)
def test_what_is_no_json_object_is_told(raw: bytes) -> None:
    error = refused(raw)
    assert (error.code, error.custom_id) == ("invalid_json_line", None)
    assert len(error.message) < 300
    assert "line 1" not in error.message  # it is line 7


@pytest.mark.parametrize(
    ("custom_id", "code"),
    [
        (None, "missing_custom_id"),
        ("", "invalid_custom_id"),
        (17, "invalid_custom_id"),
        (True, "invalid_custom_id"),
        (["a"], "invalid_custom_id"),
        ("x" * 513, "invalid_custom_id"),
        ("a\0b", "invalid_custom_id"),
        ("a\nb", "invalid_custom_id"),
        ("a\x7f", "invalid_custom_id"),
        ("a\x85", "invalid_custom_id"),
        ("\ud800", "invalid_custom_id"),
    ],
)
def test_ids_by_which_nothing_would_be_found_are_refused(custom_id: Any, code: str) -> None:
    error = refused(written(custom_id))
    assert (error.code, error.field, error.custom_id) == (code, "custom_id", None)
    assert custom_id_of(written(custom_id)) is None


@pytest.mark.parametrize("custom_id", ["x" * 64, "x" * 512, " ", "é🙂‍", "a/b\"c'"])
def test_ids_that_programs_have_are_taken(custom_id: str) -> None:
    assert read_line(written(custom_id), 1, EMBEDDINGS).custom_id == custom_id


def test_a_line_without_an_id_or_a_method() -> None:
    assert refused(b'{"url": "/v1/embeddings", "body": {}}').code == "missing_custom_id"
    assert read_line(b'{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', 1, EMBEDDINGS).custom_id == "a"


@pytest.mark.parametrize("method", ["GET", "post", "", None, 1, ["POST"]])
def test_another_method_is_refused(method: Any) -> None:
    error = refused(written(method=method))
    assert (error.code, error.field, error.custom_id) == ("invalid_method", "method", "one")


@pytest.mark.parametrize("endpoint", [*ENDPOINTS, SPAM])
@pytest.mark.parametrize(
    "url",
    [EMBEDDINGS, CHAT, COMPLETIONS, SPAM, "/v1/vfms/ham/infer", INFER, EMBEDDINGS + "/", "/v1/models", "", None, 3, {}],
)
def test_the_url_is_the_batchs(endpoint: str, url: Any) -> None:
    if url == endpoint != INFER or (endpoint == INFER and url in (SPAM, "/v1/vfms/ham/infer")):
        assert read_line(written(url=url), 1, endpoint).url == url
    else:
        error = refused(written(url=url), endpoint)
        assert (error.code, error.field, error.custom_id) == ("url_mismatch", "url", "one")
        assert endpoint in error.message


@pytest.mark.parametrize("body", [None, [], "text", 1, True])
def test_a_body_is_an_object(body: Any) -> None:
    error = refused(written(body=body))
    assert (error.code, error.field, error.custom_id) == ("invalid_body", "body", "one")


@pytest.mark.parametrize(
    ("url", "body", "code"),
    [
        (CHAT, {"stream": True}, "stream_not_supported"),
        (SPAM, {"params": {"stream": True}}, "stream_not_supported"),
        (CHAT, {"n": 2}, "n_not_supported"),
        (COMPLETIONS, {"n": 128}, "n_not_supported"),
    ],
)
def test_a_line_has_one_whole_answer(url: str, body: dict[str, Any], code: str) -> None:
    error = refused(written(url=url, body=body), url)
    assert (error.code, error.field, error.custom_id) == (code, code.partition("_")[0], "one")


@pytest.mark.parametrize("body", [{"stream": False, "n": 1}, {"stream": None, "n": None}, {"params": []}, {"n": "2"}])
def test_what_else_a_body_holds_is_looked_at_when_it_is_answered(body: dict[str, Any]) -> None:
    assert read_line(written(url=SPAM, body=body), 1, SPAM).body == body


def test_a_large_line_is_read_as_a_small_one_is() -> None:
    body = {"model": "v", "input": ["wörd " * 100, [1, 2.5, -3e9, None, True], {"deep": [[{}]]}] * 200}
    assert read_line(written(body=body), 1, EMBEDDINGS).body == body
    assert refused(written(body=body)[:-1]).code == "invalid_json_line"
    assert refused(written(body=body)[:-2] + b":NaN}}").code == "invalid_json_line"


def test_a_line_of_too_many_values_is_refused_by_its_id() -> None:
    error = refused(written(body={"input": [[]] * (MOST_CONTAINERS + 1)}))
    assert (error.code, error.custom_id) == ("line_too_long", "one")


# --- writing ----------------------------------------------------------------------------------------------------------

ANSWER = Answer({"object": "list", "data": [{"x": 1}, {"x": Tensor("float32", (2,), bytes(8))}], "usage": {}}, "v7", [])


def test_an_output_row_is_openais_with_version_and_line() -> None:
    row = json.loads(output_row("batch_1", Line(3, 'ä"b', EMBEDDINGS, {}), ANSWER))
    request = row["id"].removeprefix("batch_req_")
    assert row == {
        "id": f"batch_req_{request}",
        "custom_id": 'ä"b',
        "response": {
            "status_code": 200,
            "request_id": f"req_{request}",
            "body": {"object": "list", "data": [{"x": 1}, {"x": [0.0, 0.0]}], "usage": {}},
        },
        "error": None,
        "version": "v7",
        "line": 3,
    }


@given(ids, st.dictionaries(st.text(max_size=5), plain, max_size=4), st.integers(1, 50_000))
def test_a_row_is_one_line_whatever_is_in_it(custom_id: str, body: dict[str, Any], number: int) -> None:
    for raw in (
        output_row("b", Line(number, custom_id, EMBEDDINGS, {}), Answer(body, "v", [])),
        error_row("b", number, custom_id, InvalidInput(custom_id, field=custom_id), EMBEDDINGS),
        error_row("b", number, custom_id, BatchExpired(custom_id), EMBEDDINGS),
    ):
        assert (raw.count(b"\n"), raw[-1:]) == (1, b"\n")
        row = json.loads(raw)
        assert (row["custom_id"], row["line"]) == (custom_id, number)
    assert json.loads(output_row("b", Line(1, "a", "", {}), Answer(body, "v", [])))["response"]["body"] == body


def test_a_line_has_the_same_row_however_often_it_is_written_and_no_other_line_has_it() -> None:
    def request(batch: str, number: int) -> str:
        row = json.loads(output_row(batch, Line(number, "a", EMBEDDINGS, {}), ANSWER))
        failed = json.loads(error_row(batch, number, "a", JobFailed("no"), EMBEDDINGS))
        assert row["id"] == failed["id"]
        return str(row["id"])

    assert request("b1", 1) == request("b1", 1)
    assert len({request(batch, number) for batch in ("b1", "b2") for number in range(1, 50)}) == 98


@pytest.mark.parametrize(
    ("error", "url", "status", "code", "kind"),
    [
        (UnknownVfm("none"), EMBEDDINGS, 404, "model_not_found", "invalid_request_error"),
        (UnknownVfm("none"), SPAM, 404, "unknown_vfm", "unknown_vfm"),
        (InvalidInput("bad", field="input"), EMBEDDINGS, 400, "invalid_value", "invalid_request_error"),
        (InvalidInput("bad", field="inputs.0"), SPAM, 422, "invalid_input", "invalid_input"),
        (TextTooLong("long"), CHAT, 400, "context_length_exceeded", "invalid_request_error"),
        (RateLimited("slow", retry_after=2), COMPLETIONS, 429, "rate_limit_exceeded", "tokens"),
        (JobFailed("failed"), SPAM, 500, "job_failed", "job_failed"),
        (DeadlineExceeded("late"), CHAT, 504, "deadline_exceeded", "server_error"),
        (FmplexError("a bug"), CHAT, 500, "internal", "server_error"),
    ],
)
def test_what_the_endpoint_refuses_is_its_response(
    error: FmplexError, url: str, status: int, code: str, kind: str
) -> None:
    row = json.loads(error_row("b", 5, "a", error, url))
    assert (row["custom_id"], row["line"], row["error"]) == ("a", 5, None)
    assert row["response"]["status_code"] == status
    said = row["response"]["body"]["error"]
    assert (said["code"], said["type"], said["param"], said["message"]) == (code, kind, error.field, error.message)


@pytest.mark.parametrize("error", [BatchExpired("late"), BatchCancelled("no"), InputFileDeleted("gone")])
def test_what_was_not_run_has_no_response(error: NotRun) -> None:
    row = json.loads(error_row("b", 5, None, error, EMBEDDINGS))
    assert (row["custom_id"], row["line"], row["response"]) == (None, 5, None)
    assert row["error"] == {"code": error.code, "message": error.message, "param": None, "line": 5}
    assert error.code in ("batch_expired", "batch_cancelled", "input_file_deleted")


def test_a_line_that_cannot_be_read_says_where_it_is() -> None:
    error = refused(written(method="PUT"))
    row = json.loads(error_row("b", error.line, error.custom_id, error, EMBEDDINGS))
    assert row["error"]["line"] == row["line"] == 7
    assert (row["custom_id"], row["error"]["code"], row["error"]["param"]) == ("one", "invalid_method", "method")


def kinds() -> Iterator[type[NotRun]]:
    waiting = [NotRun]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield kind


def test_every_reason_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in kinds()]
    assert len(set(codes)) == len(codes)


def test_files_are_read_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            asked.append(size or 0)
            return super().read(size)

    file: IO[bytes] = Counting(b'{"a": 1}\n' * 1000)
    monkeypatch.setattr(lines, "_BLOCK", 100)
    assert len(list(raw_lines(file))) == 1000
    assert set(asked) == {100}
