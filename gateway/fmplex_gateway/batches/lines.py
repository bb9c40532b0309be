"""The lines of a batch: read from its input file, and written to its output and error files. Pure."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, NoReturn

from fmplex_broker.errors import FmplexError, TooLarge
from fmplex_gateway.answers import INFER, Answer, vfm_of
from fmplex_gateway.batches.errors import (
    InvalidBody,
    InvalidCustomId,
    InvalidJsonLine,
    InvalidMethod,
    LineError,
    LineTooLong,
    MissingCustomId,
    NotRun,
    SeveralNotSupported,
    StreamNotSupported,
    UrlMismatch,
)
from fmplex_gateway.dialect import error_body, error_status
from fmplex_gateway.parsing import check_count
from fmplex_gateway.wire import dump

MOST_LINE_BYTES = 4 << 20
LARGE_LINE_BYTES = 65_536  # larger ones are read on a thread
MOST_ID_CHARACTERS = 512  # OpenAI takes 64
_BLOCK = 1 << 17  # hundreds of files may be open at once
BOM = b"\xef\xbb\xbf"
_SHOWN = 64  # characters of what somebody sent


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not blank, as it is in the file. `index`: how many such lines are before it; `number`: its number, from 1,
    blank lines counted; `data`: without its end, and at most a byte more of it than `MOST_LINE_BYTES`."""

    index: int
    number: int
    data: bytes


class Line(NamedTuple):
    """A call that a line asks for."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]


def raw_lines(file: IO[bytes]) -> Iterator[RawLine]:
    """Yield the lines of a file that are not blank. Blocks, and holds half a megabyte at most beside the line that it yields."""
    index, number, held = 0, 0, b""
    while block := file.read(_BLOCK):
        first, *others = block.split(b"\n")
        held += first[: MOST_LINE_BYTES + 1 - len(held)]
        for part in others:
            number += 1
            if not _is_blank(held):
                yield RawLine(index, number, held)
                index += 1
            held = part
    if not _is_blank(held):
        yield RawLine(index, number + 1, held)


def _is_blank(data: bytes) -> bool:
    rest = data.removeprefix(BOM)
    return not rest or rest.isspace()


def read_line(raw: bytes, number: int, endpoint: str) -> Line:
    """Read a line of a batch for an endpoint; a large one takes its time. Raises `LineError`, which says what is wrong."""
    custom_id = None
    try:
        value = _decode(raw)
        custom_id = _custom_id(value)
        if len(raw) > LARGE_LINE_BYTES:
            _check_count(value)
        if (method := value.get("method", "POST")) != "POST":
            raise InvalidMethod(f'method must be "POST", not {_shown(method)}', field="method")
        url = value.get("url")
        if not isinstance(url, str) or not _is_for(url, endpoint):
            wanted = (
                f"{endpoint} with the name of a vFM" if endpoint == INFER else f"{endpoint}, which the batch is for"
            )
            raise UrlMismatch(f"url must be {wanted}, not {_shown(url)}", field="url")
        body = value.get("body")
        if not isinstance(body, dict):
            raise InvalidBody(f"body must be the object that {endpoint} takes, not {_shown(body)}", field="body")
        _check_whole(body, body.get("params") if vfm_of(url) else None)
        return Line(number, custom_id, url, body)
    except LineError as e:
        e.line, e.custom_id = number, custom_id
        raise


def custom_id_of(raw: bytes) -> str | None:
    """Return the id of a line, None if it has none that can be read."""
    try:
        return _custom_id(_decode(raw))
    except LineError:
        return None


def _decode(raw: bytes) -> dict[str, Any]:
    if len(raw) > MOST_LINE_BYTES:
        raise LineTooLong(f"the line has more than {MOST_LINE_BYTES} bytes; split the call")
    try:
        value = (_QUICK if len(raw) <= LARGE_LINE_BYTES else _PATIENT).decode(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise InvalidJsonLine(f"the line is not UTF-8: {e.reason} at byte {e.start}") from None
    except json.JSONDecodeError as e:  # its own words say `line 1` of every line
        raise InvalidJsonLine(f"the line is not valid JSON: {e.msg} at character {e.pos + 1}") from None
    except (ValueError, RecursionError) as e:
        raise InvalidJsonLine(f"the line is not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise InvalidJsonLine(f"the line must be one object, not {_shown(value)}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


class _Patient(json.JSONDecoder):
    """A decoder that others get the interpreter from in between. The usual one holds it from beginning to end: 0.4 s for four
    megabytes of brackets. Texts take it no longer."""

    def __init__(self) -> None:
        super().__init__(parse_constant=_refuse_constant)
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]


_QUICK, _PATIENT = json.JSONDecoder(parse_constant=_refuse_constant), _Patient()


def _custom_id(value: dict[str, Any]) -> str:
    found = value.get("custom_id")
    if found is None:
        raise MissingCustomId("there is no custom_id, by which the answer is found", field="custom_id")
    if not isinstance(found, str) or not 1 <= len(found) <= MOST_ID_CHARACTERS:
        raise InvalidCustomId(f"custom_id must be a text of 1 to {MOST_ID_CHARACTERS} characters", field="custom_id")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in found):
        raise InvalidCustomId(
            "custom_id must not hold NUL or other control characters, or halves of characters", field="custom_id"
        )
    return found


def _check_count(value: dict[str, Any]) -> None:
    try:
        check_count(value)
    except TooLarge as e:
        raise LineTooLong(e.message) from None


def _is_for(url: str, endpoint: str) -> bool:
    return vfm_of(url) is not None if endpoint == INFER else url == endpoint


def _check_whole(*asked: Any) -> None:
    """Check that one whole answer is asked for."""
    for values in asked:
        if not isinstance(values, dict):
            continue
        if values.get("stream") is True:
            raise StreamNotSupported("nobody reads along in a batch; leave it out", field="stream")
        n = values.get("n")
        if isinstance(n, int) and n > 1:
            raise SeveralNotSupported("a line of a batch has one text; send as many lines as texts", field="n")


def _shown(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case str():
            return repr(value[:_SHOWN])
        case dict():
            return "an object"
        case list():
            return "a list"
    return str(value)[:_SHOWN]


def output_row(batch: str, line: Line, answer: Answer) -> bytes:
    """Write the answer to a line as one line of the output file. Thousands of values take their time, and want a thread."""
    body = ",".join(f"{dump(key)}:{_dump(value)}" for key, value in answer.body.items())
    request = _request(batch, line.number)
    head = dump({"id": f"batch_req_{request}", "custom_id": line.custom_id})[:-1]
    response = dump({"status_code": 200, "request_id": f"req_{request}"})[:-1]
    tail = dump({"error": None, "version": answer.version, "line": line.number})[1:]
    return f'{head},"response":{response},"body":{{{body}}}}},{tail}\n'.encode()


def _dump(value: Any) -> str:
    """Write a value of a body as JSON, a list value by value: others get the interpreter in between."""
    return f"[{','.join(dump(one) for one in value)}]" if isinstance(value, list) else dump(value)


def error_row(batch: str, number: int, custom_id: str | None, error: FmplexError, url: str) -> bytes:
    """Write what went wrong with a line as one line of the error file. What was not run has an `error`; what was run, or refused
    by the endpoint at `url`, has its error as that endpoint's response."""
    request = _request(batch, number)
    row: dict[str, Any] = {"id": f"batch_req_{request}", "custom_id": custom_id, "response": None, "error": None}
    if isinstance(error, NotRun):
        said = {"code": error.code, "message": error.message, "param": error.field, "line": number}
        row["error"] = said
    else:
        body, status = error_body(error, url), error_status(error, url)
        row["response"] = {"status_code": status, "request_id": f"req_{request}", "body": body}
    return f"{dump(row | {'line': number})}\n".encode()


def _request(batch: str, number: int) -> str:
    """Return what names a line in its row: the same however often the row is written."""
    return hashlib.blake2b(f"{batch}:{number}".encode(), digest_size=12).hexdigest()
