"""Files of training data: JSON lines, a JSON array, CSV or TSV; each becomes rows that know where they stand.

What a file holds follows from its name (`.csv`, `.tsv`) and its first character (`[`: a JSON array); all else is JSON lines,
of which blank ones are skipped but counted, so that numbers match an editor's. The first line of a CSV names its columns as the
keys of an example. In a cell, `spans` are JSON; `labels` are JSON too, or separated by `;`. All but arrays are read line by line.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic_core import from_json

from fmplex_broker.errors import InvalidInput

_FORMS = "write JSON lines, a JSON array, or a CSV with a line of column names"
_BOM = b"\xef\xbb\xbf"
_LONGEST_CELL = 2**31 - 1  # csv's own limit would be 131,072 characters


class Row(NamedTuple):
    """One example as the file holds it: its place, its value, and what is wrong if it has none."""

    place: str
    value: Any
    wrong: str = ""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file, as `rows_of` does. Raises `InvalidInput` (field `data`) also if it cannot be read."""
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path} is not a file; {_FORMS}", field="data")
    try:
        with path.open("rb") as file:
            yield from rows_of(file, str(path))
    except OSError as e:
        raise InvalidInput(f"{path} cannot be read ({e.strerror}); check the path", field="data") from e


def rows_of(file: IO[bytes], name: str) -> Iterator[Row]:
    """Yield the rows of an open file called `name`. Blocks; it holds a line at a time, of an array everything.

    Raises `InvalidInput` (field `data`): it is not UTF-8 text, is no JSON array though it begins like one, or is a CSV without
    the columns or the quotes that it needs. Raises what reading the file raises.
    """
    lines = _decoded(file, name)
    if (suffix := Path(name).suffix.lower()) in (".csv", ".tsv"):
        return _from_csv(lines, name, suffix)
    blank: list[str] = []
    for line in lines:
        if line.strip():
            rest = itertools.chain([*blank, line], lines)
            return _from_array("".join(rest), name) if line.lstrip()[:1] == "[" else _from_lines(rest)
        blank.append(line)
    return iter(())


def _decoded(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a file as texts, each with its end."""
    for number, raw in enumerate(file, 1):
        content = raw.removeprefix(_BOM) if number == 1 else raw
        try:
            text = content.decode()
        except UnicodeDecodeError as e:
            raise InvalidInput(
                f"{name} is not UTF-8 text (line {number}: byte 0x{content[e.start]:02x}); save it as UTF-8",
                field="data",
            ) from e
        if "\0" in text:
            raise InvalidInput(f"{name} is a binary file (line {number} holds a NUL byte); {_FORMS}", field="data")
        yield text


def _from_lines(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"line {number}"
            try:
                yield Row(place, from_json(line, allow_inf_nan=False))
            except ValueError as e:
                yield Row(place, None, f"not JSON ({str(e).replace('at line 1 ', 'at ')})")


def _from_array(text: str, name: str) -> Iterator[Row]:
    try:
        values = from_json(text, allow_inf_nan=False)
    except ValueError as e:
        raise InvalidInput(f"{name} begins like a JSON array, but is none ({e}); {_FORMS}", field="data") from None
    return (Row(f"example {number}", value) for number, value in enumerate(values, 1))


def _from_csv(lines: Iterator[str], name: str, suffix: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    lines = (part for line in lines for part in io.StringIO(line, newline=""))  # also those that end with \r alone
    first = next(lines, "")
    delimiters = "\t" if suffix == ".tsv" else ",;\t"  # a spreadsheet's language decides
    delimiter = next((d for d in delimiters if "text" in _columns(first, d)), None)
    if delimiter is None:
        for _ in lines:  # what is no text at all is said as such
            pass
        raise InvalidInput(
            f"{name}: its first line must name the columns, one of them 'text'; it is {first.strip()[:80]!r}",
            field="data",
        )
    return _cells(csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True), name)


def _columns(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _cells(reader: Any, name: str) -> Iterator[Row]:
    columns: list[str] = []
    number = 1
    try:
        for cells in reader:
            place, number = f"line {number}", reader.line_num + 1
            if not columns:
                columns = [cell.strip() for cell in cells]
                if len(set(columns)) < len(columns):
                    raise InvalidInput(f"{name}: its first line names a column twice", field="data")
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
        raise InvalidInput(f"{name}: line {number}: {e}; see to its quotes", field="data") from None


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
