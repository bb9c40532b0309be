"""Drawing something twice: a picture, and a page to zoom into."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from fmplex.cli.common import out
from fmplex.tracing.recording import must_have_folder
from fmplex_broker.errors import InvalidInput

T = TypeVar("T")


def pictures(plot: Path) -> tuple[Path, Path]:
    """Return the paths of picture and page. Raises `InvalidInput`: better before the work than after it."""
    if missing := [name for name in ("matplotlib", "plotly") if find_spec(name) is None]:
        raise InvalidInput(f"--plot needs {' and '.join(missing)}: pip install 'fmplex[trace]'", field="plot")
    stem = plot.with_suffix("") if plot.suffix in (".png", ".html") else plot
    must_have_folder(stem, "plot")
    return stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".html")


def draw_both(
    what: T, paths: tuple[Path, Path], picture: Callable[[T, Path], None], page: Callable[[T, Path], None]
) -> None:
    """Draw picture and page, and say where they are. Raises `InvalidInput` if they cannot be written."""
    with out.status("drawing"):
        try:
            picture(what, paths[0])
            page(what, paths[1])
        except OSError as e:
            raise InvalidInput(f"{e.filename} cannot be written: {e.strerror}", field="plot") from e
    out.print(f"[bold]{paths[0]}[/], [bold]{paths[1]}[/] (open it in a browser to zoom)", highlight=False)
