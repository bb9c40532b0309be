"""What an upload is made of, as its bytes come: a form in which the file is one part, or the file by itself. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, Protocol
from urllib.parse import unquote

from pydantic import Field
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.files import LEAST_LIFE_S, LIFE_S, MOST_LIFE_S, UploadPurpose
from fmplex_gateway.parsing import validate
from fmplex_gateway.schemas import Body

MOST_BESIDE = 65_536  # bytes of a form beside its file
_MOST_PARTS, _MOST_VALUE, _MOST_FILENAME = 16, 1024, 255
_UNNAMED = "upload"
_EXTENDED_NAME = re.compile(rb"filename\*=utf-8''([^;\s]+)", re.IGNORECASE)
_FORM = "send multipart/form-data with the parts purpose and file, or the file's bytes as the body and ?purpose=batch&filename=…"


class UploadFields(Body):
    """The fields of an upload. `expires_after[seconds]`: how long the file is kept, from its making on."""

    purpose: UploadPurpose
    anchor: Literal["created_at"] = Field(default="created_at", alias="expires_after[anchor]")
    seconds: int = Field(default=LIFE_S, ge=LEAST_LIFE_S, le=MOST_LIFE_S, alias="expires_after[seconds]")


class Incoming(Protocol):
    """An upload that is coming."""

    filename: str

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the body; return those of them that are the file's. Raises `InvalidInput`."""

    def end(self) -> UploadFields:
        """Note that there is no more; return the fields. Raises `InvalidInput`."""


def incoming(content_type: str, query: Mapping[str, str]) -> Incoming:
    """Return what to feed the body of an upload to. Raises `InvalidInput` for fields in the query that are wrong."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return Plain(query)
    if not (boundary := options.get(b"boundary")):
        raise InvalidInput(f"the content type has no boundary; {_FORM}", field="content-type")
    try:
        return Form(boundary)
    except FormParserError as e:
        raise _unreadable(e) from None


class Plain:
    """A file that is the whole body; its fields are in the query of the URL."""

    def __init__(self, query: Mapping[str, str]) -> None:
        self._fields = validate(UploadFields, {name: value for name, value in query.items() if name != "filename"})
        self.filename = _checked_name(query.get("filename") or _UNNAMED)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the body; return those of them that are the file's."""
        return [data]

    def end(self) -> UploadFields:
        """Note that there is no more; return the fields."""
        return self._fields


class Form:
    """A form with the part `file` and, before or after it, the fields."""

    def __init__(self, boundary: bytes) -> None:
        self.filename = _UNNAMED
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end].lower()),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._part_goes_on,
                "on_part_end": self._part_ends,
            },
        )
        self._parts = 0
        self._header_name, self._header_value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""  # of the part that is coming
        self._value = bytearray()
        self._fields: dict[str, str] = {}
        self._has_file = False
        self._content: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the body; return those of them that are the file's. Raises `InvalidInput`."""
        try:
            self._parser.write(data)
        except FormParserError as e:
            raise _unreadable(e) from None
        content, self._content = self._content, []
        return content

    def end(self) -> UploadFields:
        """Note that there is no more; return the fields. Raises `InvalidInput`."""
        if self._parser.state != MultipartState.END:
            raise InvalidInput(f"the form is cut off, or ends without its boundary; {_FORM}")
        if not self._has_file:
            raise InvalidInput(f"file: this part is missing; {_FORM}", field="file")
        return validate(UploadFields, self._fields)

    # --- what the parser finds ----------------------------------------------------------------------------------------

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise InvalidInput(f"the form has more than {_MOST_PARTS} parts; {_FORM}")
        self._headers.clear()
        self._value.clear()

    def _header_ends(self) -> None:
        self._headers[bytes(self._header_name)] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        kind, options = parse_options_header(disposition)
        self._name = _text(options.get(b"name", b""), "name of a part")
        if kind != b"form-data" or not self._name:
            raise InvalidInput(f"a part of the form has no name; {_FORM}")
        if self._name != "file":
            return
        if self._has_file:
            raise InvalidInput("file: the form has two; send each in a request of its own", field="file")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise InvalidInput("file: it must be sent as it is, without a content-transfer-encoding", field="file")
        self._has_file = True
        self.filename = _checked_name(_file_name(disposition, options) or _UNNAMED)
        if "purpose" in self._fields:
            validate(UploadFields, self._fields)  # before megabytes are read

    def _part_goes_on(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._content.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MOST_VALUE:
            name = self._name[:64]
            raise InvalidInput(
                f"{name}: at most {_MOST_VALUE} bytes are taken; the file's part is called file", field=name
            )

    def _part_ends(self) -> None:
        if self._name == "file":
            return
        if self._name in self._fields:
            raise InvalidInput(f"{self._name[:64]}: the form has two; send one", field=self._name)
        self._fields[self._name] = _text(bytes(self._value), self._name[:64])


def _unreadable(e: Exception) -> InvalidInput:
    return InvalidInput(f"the form cannot be read: {e}; {_FORM}")


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{what}: must be UTF-8") from None


def _file_name(disposition: bytes, options: Mapping[bytes, Any]) -> str:
    """Return the name of the file, "" if it has none. Browsers and httpx write `%22` for quotes; some clients write names that
    are not ASCII in the way of RFC 5987."""
    plain = _text(options.get(b"filename", b""), "filename")
    if plain:
        return re.sub("%(22|0D|0A)", lambda found: unquote(found[0]), plain)
    extended = _EXTENDED_NAME.search(disposition)
    return "" if extended is None else unquote(extended[1].decode("latin-1"))


def _checked_name(name: str) -> str:
    if len(name) > _MOST_FILENAME:
        raise InvalidInput(f"filename: at most {_MOST_FILENAME} characters are taken", field="filename")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise InvalidInput("filename: it has control characters; give another", field="filename")
    return name
