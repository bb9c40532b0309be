"""Files of training data: JSON lines, a JSON array, CSV or TSV; each becomes rows that know where they stand.

What a file holds follows from its name (`.csv`, `.tsv`) and its first character (`[`: a JSON array); all else is JSON lines,
of which blank ones are skipped but counted, so that numbers match an editor's. The first line of a CSV names its columns as the
keys of an example. In a cell, `spans` are JSON; `labels` are JSON too, or separated by `;`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from fmplex_broker.errors import InvalidInput

_FORMS = "write JSON lines, a JSON array, or a CSV with a line of column names"
_LONGEST_CELL = 2**31 - 1  # csv's own limit would be 131,072 characters


class Row(NamedTuple):
    """One example as the file holds it: its place, its value, and what is wrong if it has none."""

    place: str
    value: Any
    wrong: str = ""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file.

    Raises `InvalidInput` (field `data`): it cannot be read, is not UTF-8 text, is no JSON array though it begins like one, or is
    a CSV without the columns or the quotes that it needs.
    """
    text = _text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _from_csv(text, path)
    return _from_array(text, path) if text.lstrip()[:1] == "[" else _from_lines(text)


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path} is not a file; {_FORMS}", field="data")
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as e:
        raise InvalidInput(f"{path} cannot be read ({e.strerror}); check the path", field="data") from e
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, _start(raw, e)) + 1
        raise InvalidInput(
            f"{path} is not UTF-8 text (line {line}: byte 0x{e.object[e.start]:02x}); save it as UTF-8", field="data"
        ) from e
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidInput(f"{path} is a binary file (line {line} holds a NUL byte); {_FORMS}", field="data")
    return text


def _start(raw: bytes, e: UnicodeDecodeError) -> int:
    """Return where in the file the bytes begin that are not UTF-8: the codec does not count a byte order mark."""
    return len(raw) - len(e.object) + e.start


def _from_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 and its like may stand inside a string
        if line.strip():
            place = f"line {number}"
            try:
                yield Row(place, from_json(line, allow_inf_nan=False))
            except ValueError as e:
                yield Row(place, None, f"not JSON ({str(e).replace('at line 1 ', 'at ')})")


def _from_array(text: str, path: Path) -> Iterator[Row]:
    try:
        values = from_json(text, allow_inf_nan=False)
    except ValueError as e:
        raise InvalidInput(f"{path} begins like a JSON array, but is none ({e}); {_FORMS}", field="data") from None
    return (Row(f"example {number}", value) for number, value in enumerate(values, 1))


def _from_csv(text: str, path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    first = text.partition("\n")[0]
    delimiters = "\t" if path.suffix.lower() == ".tsv" else ",;\t"  # a spreadsheet's language decides
    delimiter = next((d for d in delimiters if "text" in _columns(first, d)), None)
    if delimiter is None:
        raise InvalidInput(
            f"{path}: its first line must name the columns, one of them 'text'; it is {first.strip()[:80]!r}",
            field="data",
        )
    return _cells(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), path)


def _columns(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _cells(reader: Any, path: Path) -> Iterator[Row]:
    columns: list[str] = []
    number = 1
    try:
        for cells in reader:
            place, number = f"line {number}", reader.line_num + 1
            if not columns:
                columns = [cell.strip() for cell in cells]
                if len(set(columns)) < len(columns):
                    raise InvalidInput(f"{path}: its first line names a column twice", field="data")
            elif not any(cell.strip() for cell in cells):
                continue
            elif len(cells) != len(columns):
                wrong = (
                    f"has {len(cells)} cells, but there are {len(columns)} columns; quote cells that hold the separator"
                )
                yield Row(place, None, wrong)
            else:
                yield _row(place, dict(zip(columns, cells, strict=True)))
    except csv.Error as e:
        raise InvalidInput(f"{path}: line {number}: {e}; see to its quotes", field="data") from None


def _row(place: str, cells: dict[str, str]) -> Row:
    """Read the cells of one row: an empty one is a key that is not there, but for the text and the labels."""
    value: dict[str, Any] = {key: cell for key, cell in cells.items() if cell or key in ("text", "labels")}
    try:
        for key, read in (("value", _number), ("labels", _labels), ("spans", from_json)):
            if key in value:
                value[key] = read(value[key])
    except ValueError as e:
        return Row(place, None, f"{key!r}: {e}")
    return Row(place, value)


def _number(cell: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{cell!r} is not a number")
    return number


def _labels(cell: str) -> Any:
    if cell.lstrip().startswith("["):
        return from_json(cell)
    if ";" not in cell and ("," in cell or "|" in cell):
        raise ValueError(f'{cell!r} may be one label or several; write a list, ["a", "b"], or a;b')
    return [label.strip() for label in cell.split(";") if label.strip()]
