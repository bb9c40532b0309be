"""Tables that fit: a narrow terminal shows fewer columns, never half a name or half a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.align import Align
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_PADDING = 2  # of a column, as rich draws it


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a `FittedTable`, aligned to the `left` or else to the right. `rank`: of columns that do not fit, the one of the
    highest rank is left out first; 0 is never left out. `words`: the cells are words, which may be put on lines of this many
    characters; 0: they are not."""

    title: str
    rank: int = 0
    left: bool = False
    words: int = 0


class FittedTable:
    """A table of plain text whose first column holds names. Columns of rank 0 that have no room beside each other are put below
    each other, each part with the names again."""

    def __init__(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        self._columns, self._rows = columns, list(rows)
        self._widths = [self._width(at) for at in range(len(columns))]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in self._parts(options.max_width):
            yield self._table(part)

    def _width(self, at: int) -> int:
        """Return the least width of a column, in characters, padding included."""
        column = self._columns[at]
        cells = max((cell_len(row[at]) for row in self._rows), default=0)
        title = max(map(cell_len, column.title.splitlines()), default=0)
        return _PADDING + max(title, min(cells, column.words or cells))

    def _parts(self, width: int) -> list[list[int]]:
        """Choose the columns to show, as positions, for each of the tables below each other."""
        shown = list(range(len(self._columns)))
        for at in sorted(shown, key=lambda at: -self._columns[at].rank):
            if not self._columns[at].rank or sum(self._widths[i] for i in shown) <= width:
                break
            shown.remove(at)
        parts = [[0]]
        for at in shown[1:]:
            if len(parts[-1]) > 1 and sum(self._widths[i] for i in [*parts[-1], at]) > width:
                parts.append([0])
            parts[-1].append(at)
        return parts

    def _table(self, part: Sequence[int]) -> Table:
        table = Table(box=None, header_style="bold")
        for at in part:
            column = self._columns[at]
            # Only a name that is wider than all there is may be folded.
            folds = at == 0 or column.words > 0
            justify: Literal["left", "right"] = "left" if at == 0 or column.left else "right"
            table.add_column(
                Align(Text(column.title, justify=justify), justify, vertical="bottom"),
                justify=justify, no_wrap=not folds, overflow="fold", min_width=self._widths[at] - _PADDING if at else None,
            )  # fmt: skip
        for row in self._rows:
            table.add_row(*(Text(row[at]) for at in part))
        return table
