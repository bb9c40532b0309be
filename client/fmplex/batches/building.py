"""The input file of a batch: made of a list, of lines of text or JSON, of a table or a folder; or one that is there already.

A line of the file that is made has the number of the line that it comes from, with blank lines in between: what the fleet says
of a line is true of the user's file. What cannot be read is passed on as it is, so that it fails in its place.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, cast

from fmplex.batches.tables import read_table
from fmplex.call import vfm_path
from fmplex_broker.errors import InvalidInput

_IN_MEMORY = 1_048_576  # bytes of a file that is made; more wait on disk
_LONGEST_NAME = 255
_LOOKED_AT = 100  # lines, to see what a file of JSON lines is
_FORMS = "give a file of lines (.txt), JSON lines (.jsonl), a table (.csv, .tsv) or a folder of texts"
_INFER = "/v1/vfms/{name}/infer"  # the endpoint of requests to several vFMs
_BINARY = {
    b"\x1f\x8b": "compressed", b"PK\x03\x04": "an archive or a spreadsheet", b"PAR1": "a Parquet file", b"%PDF": "a PDF",
    codecs.BOM_UTF16_LE: "UTF-16 text", codecs.BOM_UTF16_BE: "UTF-16 text",
}  # fmt: skip


class Item(NamedTuple):
    """One line to be: its number, its `custom_id`, and its input."""

    number: int
    custom_id: str
    value: Any


class InputFile:
    """A file for a batch, `file`, called `name`, whose lines are for `endpoint`. Close it."""

    def __init__(self, file: BinaryIO, name: str, endpoint: str) -> None:
        self.file, self.name, self.endpoint = file, name, endpoint

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.file.close()


def prepare(
    inputs: str | Path | Iterable[Any], vfm: str | None, params: Mapping[str, Any], column: str, **more: Any
) -> InputFile:
    """Make the input file of a batch. `inputs`: the path of a file or folder, or inputs as of `infer`; `vfm` and `params`: for
    each of them; `column`: of a table; `more`: goes into each line's body. Raises `InvalidInput`."""
    if not isinstance(inputs, str | Path):
        if isinstance(inputs, Mapping | bytes):
            raise InvalidInput("a batch takes many inputs: give a list, an iterator or a path", field="inputs")
        return _written((Item(n, f"line-{n}", value) for n, value in enumerate(inputs, 1)), "inputs", vfm, params, more)
    path = Path(inputs)
    if path.is_dir():
        return _written(_texts(path), path.resolve().name, vfm, params, more)
    _check(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _written(
            (Item(n, f"line-{n}", text) for n, text in read_table(path, column)), path.stem, vfm, params, more
        )
    if suffix not in (".jsonl", ".ndjson"):
        return _written(_lines(path), path.stem, vfm, params, more)
    if (endpoint := _requests_endpoint(path)) is None:
        return _written(_json_lines(path), path.stem, vfm, params, more)
    if vfm is not None or params:
        raise InvalidInput(
            f"the lines of {path} are requests, which say what they are for; give no vFM and no parameters beside them",
            field="vfm" if vfm is not None else "params",
        )
    return InputFile(path.open("rb"), _sendable(path.name), endpoint)


def _check(path: Path) -> None:
    """Refuse what can be no file of inputs. Raises `InvalidInput`."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as e:
        raise InvalidInput(f"{path} cannot be read ({e.strerror}); {_FORMS}", field="inputs") from e
    for magic, what in _BINARY.items():
        if start.startswith(magic):
            raise InvalidInput(f"{path} is {what}; unpack it, save it as UTF-8 text, or {_FORMS}", field="inputs")
    if path.suffix.lower() == ".json":
        raise InvalidInput(
            f"{path}: one JSON value a line is taken, in a file called .jsonl; or {_FORMS}", field="inputs"
        )


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, each with its number. Bytes that are not UTF-8 stay what they are."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            content = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            text = content.decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r")
            if text.strip():
                yield number, text


def _lines(path: Path) -> Iterator[Item]:
    return (Item(number, f"line-{number}", text) for number, text in _numbered(path))


class _Raw(str):
    """A line that is passed on as it is."""


def _json_lines(path: Path) -> Iterator[Item]:
    return (Item(number, f"line-{number}", _json(text)) for number, text in _numbered(path))


def _json(text: str) -> Any:
    """Read a line of JSON; one that is none stays as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _Raw(text)


def _texts(folder: Path) -> Iterator[Item]:
    """Yield what the files of a folder and the folders in it hold, hidden ones left out, by their path, which names them."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    shown = sorted(name for name in found if not any(part.startswith(".") for part in name.parts))
    for number, name in enumerate(shown, 1):
        _check(found[name])
        text = found[name].read_bytes().removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
        yield Item(number, name.as_posix(), text)


def _requests_endpoint(path: Path) -> str | None:
    """Return what requests as OpenAI's batches have them are for, None if the lines are no requests but inputs."""
    for _, text in zip(range(_LOOKED_AT), _numbered(path), strict=False):
        match _json(text[1]):
            case {"url": str(url), "body": _} | {"url": str(url), "custom_id": _}:
                return _INFER if re.fullmatch(r"/v1/vfms/[^/]+/infer", url) else url
            case _Raw():
                continue
            case _:
                return None
    return None


def _written(
    items: Iterable[Item], name: str, vfm: str | None, params: Mapping[str, Any], more: Mapping[str, Any]
) -> InputFile:
    """Write the lines of a batch into a temporary file. Raises `InvalidInput`."""
    if vfm is None:
        raise InvalidInput("say which vFM the inputs are for: vfm=NAME (--vfm NAME)", field="vfm")
    url = vfm_path(vfm, "/infer")
    ends = _dumped({"params": dict(params), **more}, "params")
    file = cast(BinaryIO, SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115 - who gets it closes it
    try:
        last = 0
        for item in items:
            file.write(b"\n" * (item.number - last - 1))
            file.write(_line(item, url, ends) + b"\n")
            last = item.number
        if not last:
            raise InvalidInput("no inputs: there is nothing in it to send", field="inputs")
    except BaseException:
        file.close()
        raise
    return InputFile(file, _sendable(f"{name}.jsonl"), url)


def _sendable(name: str) -> str:
    """Return a file's name as gateways take it."""
    return "".join(c if c.isprintable() else "_" for c in name)[-_LONGEST_NAME:]


def _line(item: Item, url: str, ends: bytes) -> bytes:
    if isinstance(item.value, _Raw):
        return item.value.encode(errors="surrogateescape")
    head = _dumped({"custom_id": item.custom_id, "method": "POST", "url": url}, "inputs")[:-1]
    value = _dumped(item.value, f"inputs.{item.number - 1}")
    return head + b',"body":{"inputs":[' + value + b"]," + ends[1:] + b"}"


def _dumped(value: Any, field: str) -> bytes:
    """Write a value as JSON in UTF-8. Raises `InvalidInput`."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        try:
            return text.encode(errors="surrogateescape")
        except UnicodeEncodeError:  # half a surrogate pair that came from JSON
            return json.dumps(value, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as e:
        raise InvalidInput(
            f"a batch is a file of JSON, and this is none ({e}); tensors: send lists", field=field
        ) from None
