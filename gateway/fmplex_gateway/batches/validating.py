"""Looking through a batch's input file before any of it runs. What is wrong with one line only is that line's answer."""

from __future__ import annotations

import hashlib
from typing import IO, NamedTuple

from fmplex_gateway.batches.lines import BOM, custom_id_of, raw_lines
from fmplex_gateway.turns import in_turns

MOST_LINES = 50_000
MOST_ERRORS = 100  # that are told
_SHOWN = 64  # characters of an id
# What some files begin with that are no lines of JSON.
_FORMATS = {
    b"\x1f\x8b": "compressed with gzip; send it unpacked",
    b"PK\x03\x04": "a zip archive; send the file in it",
    b"BZh": "compressed with bzip2; send it unpacked",
    b"\xfd7zXZ": "compressed with xz; send it unpacked",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; send it unpacked",
    b"PAR1": "a Parquet file; write it as lines of JSON",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"{\0": "UTF-16; save it as UTF-8",
    b"\0{": "UTF-16; save it as UTF-8",
}


class BatchError(NamedTuple):
    """Why a batch fails as a whole. `line`: the number of the line at fault, None if it is none; `param`: the part of it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Checked(NamedTuple):
    """What was found in an input file: how many lines are not blank, and why the batch must not run, nothing if it may."""

    total: int
    errors: list[BatchError]


def check_file(file: IO[bytes]) -> Checked:
    """Count the lines of an input file and look for what fails the batch as a whole. Blocks; the memory that it takes does not
    grow with the file. Raises what reading the file raises."""
    first = last = b""
    total, ids = 0, _Ids()
    for line in in_turns(raw_lines(file)):
        total = line.index + 1
        if line.index == 0:
            first = line.data
            if (what := _format(first)) is not None:
                return Checked(0, [BatchError("invalid_file", f"the file is {what}", line.number)])
        if line.index == MOST_LINES:
            return Checked(total, [*ids.errors(), _too_many(line.number)])
        last = line.data
        ids.add(line.number, custom_id_of(last))
    if total == 0:
        return Checked(0, [BatchError("empty_file", "the file has no lines but blank ones; put a call on each")])
    if _is_array(first.removeprefix(BOM).strip(), last.strip(), total):
        what = "the file is one JSON array; write its objects a line each, without brackets and commas around them"
        return Checked(0, [BatchError("invalid_file", what, 1)])
    return Checked(total, ids.errors())


def _format(data: bytes) -> str | None:
    return next((what for magic, what in _FORMATS.items() if data.startswith(magic)), None)


def _is_array(first: bytes, last: bytes, total: int) -> bool:
    """Tell whether a file is one array, by its first and last lines. Where each line is an array, that is each line's fault."""
    return first.startswith(b"[") and (total == 1 or (last.endswith(b"]") and not first.endswith(b"]")))


def _too_many(line: int) -> BatchError:
    return BatchError("too_many_tasks", f"a batch has at most {MOST_LINES} lines, and this is one more; split it", line)


class _Ids:
    """The ids that were seen, and those that were seen twice. Of each only a digest is kept."""

    def __init__(self) -> None:
        self._lines: dict[bytes, int] = {}
        self._told: list[BatchError] = []
        self._more = 0

    def add(self, line: int, custom_id: str | None) -> None:
        """Note the id of a line, if it has one."""
        if custom_id is None:
            return
        first = self._lines.setdefault(hashlib.blake2b(custom_id.encode(), digest_size=16).digest(), line)
        if first == line:
            return
        if len(self._told) == MOST_ERRORS:
            self._more += 1
            return
        what = f"custom_id {custom_id[:_SHOWN]!r} is on line {first} already; give each line its own"
        self._told.append(BatchError("duplicate_custom_id", what, line, "custom_id"))

    def errors(self) -> list[BatchError]:
        """Return an error for each line that has another line's id, up to so many."""
        if not self._more:
            return self._told
        what = f"{self._more} more lines have a custom_id that another one has"
        return [*self._told, BatchError("duplicate_custom_id", what, None, "custom_id")]
