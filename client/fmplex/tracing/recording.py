"""The file of a recording: JSON lines, first a header, then one object a pass. Written as passes come: a kill loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fmplex_broker.errors import Conflict, InvalidInput
from fmplex_broker.wire.passes import VERSION, PassRecord


@dataclass(frozen=True, slots=True)
class RecordingHeader:
    """The first line of a recording: it holds the passes that these workers, and those that joined them, began from `begin_ms`
    (server time) on."""

    begin_ms: int
    backbones: list[str]
    workers: list[str]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording as it was read."""

    header: RecordingHeader
    passes: list[PassRecord]


def must_be_new(path: Path) -> None:
    """Check that a recording can be made. Raises `Conflict` if the file is there, `InvalidInput` if it cannot be made there."""
    if path.exists() or path.is_symlink():
        raise Conflict(f"{path} is there already and is never overwritten; name another file, or draw it: --plot OUT")
    must_have_folder(path, "file")


def must_have_folder(path: Path, field: str) -> None:
    """Check that the folder of a file exists. Raises `InvalidInput` with the field `field`."""
    if not path.parent.is_dir():
        raise InvalidInput(f"{path} cannot be written: there is no folder {path.parent}", field=field)


class RecordingWriter:
    """A new recording to append passes to, in the file `path`. Raises `Conflict` if the file exists by now, `InvalidInput`
    when it cannot be written."""

    def __init__(self, path: Path, header: RecordingHeader) -> None:
        self._path = path
        try:
            self._file: IO[str] = path.open("x", encoding="utf-8")
        except FileExistsError:
            must_be_new(path)
            raise
        except OSError as e:
            raise self._failed(e) from e
        self._write([{"fmplex_trace": VERSION, **asdict(header)}])

    def add(self, passes: Iterable[PassRecord]) -> None:
        """Append passes. Raises `InvalidInput` when the file cannot be written."""
        self._write([record.to_wire() for record in passes])

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        try:
            self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            self._file.flush()
        except OSError as e:
            raise self._failed(e) from e

    def _failed(self, e: OSError) -> InvalidInput:
        return InvalidInput(f"{self._path} cannot be written: {e.strerror}", field="file")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_recording(path: Path) -> Recording:
    """Read a recording; a last line that a kill cut off is left out. Raises `InvalidInput` for what is none of this version."""
    try:
        *lines, cut_off = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not text"
        raise InvalidInput(f"{path} cannot be read: {reason}", field="file") from e
    header = _header(path, lines[0] if lines else cut_off)
    passes = []
    for number, line in enumerate(lines[1:], 2):
        try:
            passes.append(PassRecord.from_wire(json.loads(line)))
        except ValueError as e:
            raise InvalidInput(f"{path}, line {number}, is no pass ({e}); the file was changed", field="file") from e
    return Recording(header, passes)


def _header(path: Path, line: str) -> RecordingHeader:
    try:
        wire = json.loads(line)
        version = wire.pop("fmplex_trace")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInput(f"{path} is not a recording of `fmplex trace`", field="file") from None
    try:
        if version != VERSION:
            raise ValueError(version)
        return RecordingHeader(**wire)
    except (ValueError, TypeError):
        raise InvalidInput(
            f"{path} is a recording of format {version!r}, this fmplex reads {VERSION}; record again", field="file"
        ) from None
