"""The rows of a batch's output and error file, put into the order of its input."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from fmplex.batches.records import BatchResult
from fmplex.connection import typed_error
from fmplex_broker.errors import Cancelled, DeadlineExceeded, FmplexError, InvalidInput, Unavailable

_LINE_LAST = re.compile(rb'"line": ?([0-9]+)\}\s*\Z')
# Words of lines that never ran; whatever else is said of such a line is invalid input.
_NEVER_RAN: dict[str, type[FmplexError]] = {"batch_expired": DeadlineExceeded, "batch_cancelled": Cancelled}


class _Place(NamedTuple):
    line: int
    file: int
    start: int


class Rows:
    """The rows of one batch, from its files, kept on disk: iterate for what came of each line, in their order. Close it."""

    def __init__(self) -> None:
        self._files: list[BinaryIO] = []
        self._places: list[_Place] = []
        self._open = ExitStack()

    def add(self) -> BinaryIO:
        """Return an empty file for one of the batch's files; `index` it when it is written."""
        file = self._open.enter_context(TemporaryFile())  # noqa: SIM115 - the stack closes it
        self._files.append(file)
        return file

    def index(self) -> None:
        """Find the lines that the files speak of. Raises `Unavailable` for what are no rows."""
        for number, file in enumerate(self._files):
            start = file.seek(0)
            for raw in file:
                self._places.append(_Place(_line_of(raw), number, start))
                start += len(raw)
        self._places.sort()

    def __iter__(self) -> Iterator[BatchResult]:
        return map(read_row, self.raw())

    def __len__(self) -> int:
        return len(self._places)

    def raw(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as they are, in the order of their lines."""
        for place in self._places:
            file = self._files[place.file]
            file.seek(place.start)
            yield json.loads(file.readline())

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._open.close()


def _line_of(raw: bytes) -> int:
    if (found := _LINE_LAST.search(raw)) is not None:  # not all of a large row need be read for it
        return int(found[1])
    try:
        return int(json.loads(raw)["line"])
    except (ValueError, KeyError, TypeError) as e:
        raise Unavailable(
            f"the batch's files are not those of an FMplex gateway of this client's version ({e!r})"
        ) from e


def read_row(row: Mapping[str, Any]) -> BatchResult:
    """Read one row of a batch's files."""
    answer = row.get("response") or {}
    body = answer.get("body") or {}
    if (wire := row.get("error")) is not None:
        kind = _NEVER_RAN.get(wire["code"], InvalidInput)
        error: FmplexError = kind(wire["message"], field=wire.get("param"))
        return BatchResult(row["line"], row["custom_id"], error=error, code=wire["code"])
    if (wire := body.get("error")) is not None:
        error = typed_error(wire, answer["status_code"])
        return BatchResult(row["line"], row["custom_id"], error=error, code=wire["code"])
    if "outputs" in body:  # of infer
        outputs = body["outputs"]
        output, units = outputs[0] if len(outputs) == 1 else outputs, body["usage"]["units"]
    else:
        output, units = body, (body.get("usage") or {}).get("total_tokens")
    return BatchResult(
        row["line"], row["custom_id"], output, vfm=body.get("vfm", body.get("model")), version=row.get("version"), units=units
    )  # fmt: skip


def write_rows(rows: Iterable[BatchResult], path: Path) -> int:
    """Write what came of each line to a file; return how many have failed."""
    failed = 0
    with path.open("w", encoding="utf-8") as file:
        for result in rows:
            failed += result.error is not None
            file.write(json.dumps(told(result)) + "\n")
    return failed


def told(result: BatchResult) -> dict[str, Any]:
    """Lay out what came of a line as `fmplex infer -o` does."""
    line: dict[str, Any] = {"line": result.line, "custom_id": result.custom_id}
    if result.error is not None:
        return line | {"error": {"code": result.code, "message": result.error.message}}
    return line | {"output": result.output, "vfm": result.vfm, "version": result.version, "units": result.units}
