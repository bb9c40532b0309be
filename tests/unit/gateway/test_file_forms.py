"""Forms as clients send them, and as nobody should: whatever comes, the file's bytes are what was sent, or a refusal says why."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.files import LIFE_S
from fmplex_gateway.files.form import Incoming, UploadFields, incoming

CONTENT = b'{"custom_id": "1"}\r\n{"custom_id": "2"}\n'
PURPOSE = 'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'
FILE = 'Content-Disposition: form-data; name="file"; filename="x.jsonl"\r\n\r\nabc'


def fed(content_type: str, body: bytes, size: int = 7, **query: str) -> tuple[bytes, Incoming, UploadFields]:
    """Feed a body in pieces of `size` bytes."""
    upload = incoming(content_type, query)
    got = b"".join(b"".join(upload.feed(body[at : at + size])) for at in range(0, len(body), size))
    return got, upload, upload.end()


def form(*parts: str | bytes, end: str = "--b--\r\n") -> bytes:
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in encoded) + end.encode()


def refused(*parts: str | bytes, end: str = "--b--\r\n", kind: str = "multipart/form-data; boundary=b") -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        fed(kind, form(*parts, end=end))
    return caught.value


def as_httpx_sends(content: bytes, filename: str, **fields: str) -> tuple[str, bytes]:
    """The openai package sends files with httpx."""
    request = httpx.Request("POST", "http://x", data=fields, files={"file": (filename, content)})
    return request.headers["content-type"], request.read()


# --- what is taken ----------------------------------------------------------------------------------------------------


@given(
    content=st.binary(max_size=200) | st.text("-\r\nb", max_size=60).map(str.encode),
    size=st.integers(1, 64),
    filename=st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\\%"), min_size=1, max_size=40),
)
def test_any_bytes_under_any_name_in_any_pieces(content: bytes, size: int, filename: str) -> None:
    kind, body = as_httpx_sends(content, filename, purpose="batch")
    got, upload, fields = fed(kind, body, size)
    assert (got, upload.filename) == (content, filename)
    assert (fields.purpose, fields.seconds) == ("batch", LIFE_S)


def test_the_purpose_may_come_after_the_file() -> None:
    got, upload, fields = fed("multipart/form-data; boundary=b", form(FILE, PURPOSE))
    assert (got, upload.filename, fields.purpose) == (b"abc", "x.jsonl", "batch")


def test_expiry_as_the_openai_package_sends_it() -> None:
    life = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    _, _, fields = fed(*as_httpx_sends(b"x", "f", purpose="batch", **life))
    assert fields.seconds == 3600


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('filename="a \\"b\\".jsonl"', 'a "b".jsonl'),  # curl
        ('filename="a %22b%22.jsonl"', 'a "b".jsonl'),  # browsers, httpx
        ('filename="100%.jsonl"', "100%.jsonl"),
        ("filename=plain.jsonl", "plain.jsonl"),
        ('filename="ünïcode 日本.jsonl"', "ünïcode 日本.jsonl"),
        ("filename*=utf-8''%C3%BCn%C3%AF.jsonl", "ünï.jsonl"),  # aiohttp
        ('filename="../../etc/passwd"', "../../etc/passwd"),  # it names nothing in the store
        ('filename=""', "upload"),
        ("", "upload"),
    ],
)
def test_names(disposition: str, name: str) -> None:
    part = f'Content-Disposition: form-data; name="file"; {disposition}\r\nContent-Type: text/plain\r\n\r\nabc'
    got, upload, _ = fed("multipart/form-data; boundary=b", form(PURPOSE, part))
    assert (got, upload.filename) == (b"abc", name)


@pytest.mark.parametrize(
    "kind", ["", "application/octet-stream", "application/x-www-form-urlencoded", "application/jsonl"]
)
def test_a_body_that_is_the_file(kind: str) -> None:
    got, upload, fields = fed(
        kind, CONTENT, purpose="batch", filename="mine.jsonl", **{"expires_after[seconds]": "7200"}
    )
    assert (got, upload.filename, fields.seconds) == (CONTENT, "mine.jsonl", 7200)
    assert fed(kind, b"", purpose="batch")[:1] == (b"",), "an empty file is one; a batch of it says what is wrong"


@given(
    size=st.integers(1, 30),
    before=st.sampled_from([b"", b"\r\n"]),
    after=st.sampled_from([b"", b"\r\nbye", b"--b\r\n"]),
)
def test_what_is_around_the_form_is_left_alone(size: int, before: bytes, after: bytes) -> None:
    got, *_ = fed("multipart/form-data; boundary=b", before + form(PURPOSE, FILE) + after, size)
    assert got == b"abc"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "field", "words"),
    [
        ([PURPOSE], "file", "this part is missing"),
        ([FILE], "purpose", "Field required"),
        ([PURPOSE, FILE, FILE], "file", "has two"),
        ([PURPOSE, PURPOSE, FILE], "purpose", "has two"),
        ([PURPOSE.replace("batch", "vision"), FILE], "purpose", "'batch' or 'fine-tune'"),
        ([FILE, PURPOSE.replace("batch", "batch_output")], "purpose", "'batch'"),
        ([PURPOSE, FILE, PURPOSE.replace("purpose", "color")], "color", "unknown key"),
        ([PURPOSE, FILE, PURPOSE.replace("purpose", "expires_after[seconds]")], "expires_after[seconds]", "integer"),
        ([PURPOSE.replace("purpose", "expires_after[seconds]").replace("batch", "3599"), PURPOSE, FILE],
         "expires_after[seconds]", "3600"),
        ([PURPOSE.replace("purpose", "expires_after[anchor]"), PURPOSE, FILE], "expires_after[anchor]", "created_at"),
        ([PURPOSE.replace("batch", "b" * 1025), FILE], "purpose", "at most 1024 bytes"),
        ([PURPOSE.encode() + b"\xff", FILE], None, "UTF-8"),
        ([PURPOSE, FILE.replace("x.jsonl", "x" * 256)], "filename", "at most 255"),
        ([PURPOSE, FILE.replace("x.jsonl", "x\0y")], "filename", "control characters"),
        ([PURPOSE, FILE.encode().replace(b"x.jsonl", b"\xff")], None, "UTF-8"),
        ([PURPOSE, "Content-Transfer-Encoding: base64\r\n" + FILE], "file", "as it is"),
        (["\r\nno headers"], None, "has no name"),
        (["Content-Disposition: attachment; name=\"file\"\r\n\r\nabc"], None, "has no name"),
        (["Content-Disposition form-data\r\n\r\nabc"], None, "cannot be read"),
        ([f"X-{i}: y" for i in range(1)] + ["\r\n".join(f"X-{i}: y" for i in range(99))], None, "cannot be read"),
        ([f"X: {'y' * 100_000}\r\n\r\nabc"], None, "cannot be read"),
        ([PURPOSE.replace("purpose", f"f{i}") for i in range(17)], None, "more than 16 parts"),
    ],
)  # fmt: skip
def test_forms_that_are_refused(parts: list[Any], field: str | None, words: str) -> None:
    error = refused(*parts)
    assert (error.field, words in error.message) == (field, True), error.message


def test_a_wrong_purpose_is_refused_before_the_file_is_read() -> None:
    upload = incoming("multipart/form-data; boundary=b", {})
    with pytest.raises(InvalidInput, match="purpose"):
        upload.feed(form(PURPOSE.replace("batch", "vision"), FILE)[:-10])


@pytest.mark.parametrize("end", ["", "--b", "--b-", "--b\r\n"])
def test_a_form_that_is_cut_off(end: str) -> None:
    assert "is cut off" in refused(PURPOSE, FILE, end=end).message


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("multipart/form-data", "no boundary"),
        ("multipart/form-data; boundary=", "no boundary"),
        ("multipart/form-data; boundary=c", "cannot be read"),
        (f"multipart/form-data; boundary={'b' * 1000}", "cannot be read"),
    ],
)
def test_boundaries(kind: str, words: str) -> None:
    assert words in refused(PURPOSE, FILE, kind=kind).message


def test_fields_of_a_plain_body_are_checked_before_it_is_read() -> None:
    for query, field in (
        ({}, "purpose"),
        ({"purpose": "assistants"}, "purpose"),
        ({"purpose": "batch", "color": "red"}, "color"),
        ({"purpose": "batch", "filename": "a\nb"}, "filename"),
    ):
        with pytest.raises(InvalidInput) as caught:
            incoming("text/plain", query)
        assert caught.value.field == field


PIECES = [
    b"--b",
    b"\r\n",
    b"--",
    b"Content-Disposition: form-data; ",
    b'name="file"',
    b'name="purpose"',
    b"batch",
    b": ",
]


@given(
    pieces=st.lists(st.sampled_from([*PIECES, b"x", b" ", b"\r", b"\n", b"\0", b"\xff"]), max_size=30),
    size=st.integers(1, 9),
)
def test_whatever_comes_is_read_or_refused(pieces: list[bytes], size: int) -> None:
    with suppress(InvalidInput):
        fed("multipart/form-data; boundary=b", b"--b\r\n" + b"".join(pieces), size)
