"""Tables of texts: CSV and TSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmplex_broker.errors import InvalidInput

_LONGEST_CELL = 16_777_216  # characters


def read_table(path: Path, column: str) -> Iterator[tuple[int, Any]]:
    """Yield the inputs of a table's rows, each with the number of the line that it begins on: the text in `column`, and if
    there is a column called text_pair, a pair. Blank rows are left out; a blank cell is a blank text.

    Bytes that are not UTF-8 stay what they are. Raises `InvalidInput` for a table without the column, or that is none.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        delimiters = "\t" if path.suffix.lower() == ".tsv" else ",;\t"  # a spreadsheet's language decides
        delimiter = next((d for d in delimiters if column in _cells(first, d)), None)
        if delimiter is None:
            raise InvalidInput(
                f"{path}: its first line must name the columns, one of them {column!r}, or --column (column=) says which; "
                f"it is {first.strip()[:80]!r}",
                field="column",
            )
        columns = _cells(first, delimiter)
        if len(set(columns)) < len(columns):
            raise InvalidInput(f"{path}: its first line names a column twice", field="column")
        yield from _rows(csv.reader(file, delimiter=delimiter, strict=True), columns, column, path)


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _rows(reader: Any, columns: list[str], column: str, path: Path) -> Iterator[tuple[int, Any]]:
    at, pair = columns.index(column), columns.index("text_pair") if "text_pair" in columns else None
    number = 2  # the first line names the columns
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) != len(columns):
                    raise InvalidInput(
                        f"{path}, line {number}: {len(cells)} cells in {len(columns)} columns; quote cells that hold the "
                        "separator",
                        field="inputs",
                    )
                yield number, cells[at] if pair is None else {"text": cells[at], "text_pair": cells[pair]}
            number = reader.line_num + 2
    except csv.Error as e:
        raise InvalidInput(f"{path}, line {number}: not CSV ({e})", field="inputs") from None
