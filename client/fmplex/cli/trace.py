"""`fmplex trace`: record what is in each pass of each worker, and draw who was served when."""

from __future__ import annotations

import asyncio
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmplex.cli.common import broker_url, err, out
from fmplex.tracing.chart import make_chart
from fmplex.tracing.recording import must_be_new, must_have_folder, read_recording
from fmplex_broker.errors import FmplexError, InvalidInput

if TYPE_CHECKING:
    from fmplex.tracing.recorder import RecordingProgress


def trace(
    file: Annotated[
        Path,
        typer.Argument(help="The recording: JSON lines, one a pass. Written if it is not there, else drawn again."),
    ],
    plot: Annotated[Path | None, typer.Option(metavar="OUT", help="Draw OUT.png, and OUT.html to zoom into.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Record for so long; default: until Ctrl-C.")] = None,
    broker: Annotated[str | None, typer.Option(help="Broker URL; default: the fleet that runs here.")] = None,
) -> None:
    """Record what each pass of each worker contains, and draw who was served when."""
    pictures = _pictures(plot, file) if plot is not None else []
    if plot is None or seconds is not None or not file.exists():
        must_be_new(file)
        asyncio.run(_record(file, broker_url(broker), seconds))
    if pictures:
        _draw(file, *pictures)


def _pictures(plot: Path, recording: Path) -> list[Path]:
    """Return the paths of picture and page. Raises `InvalidInput`: better before a recording than after it."""
    if missing := [name for name in ("matplotlib", "plotly") if find_spec(name) is None]:
        raise InvalidInput(f"--plot needs {' and '.join(missing)}: pip install 'fmplex[trace]'", field="plot")
    stem = plot.with_suffix("") if plot.suffix in (".png", ".html") else plot
    pictures = [stem.with_name(stem.name + suffix) for suffix in (".png", ".html")]
    for path in pictures:
        must_have_folder(path, "plot")
        if path.resolve() == recording.resolve():
            raise InvalidInput(f"--plot would overwrite the recording {recording}; give it another name", field="plot")
    return pictures


async def _record(file: Path, url: str, seconds: float | None) -> None:
    from fmplex.tracing.recorder import PassRecorder

    stop = asyncio.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sig, stop.set)
    with out.status("waiting for the workers") as status:
        recorder = PassRecorder(file, stop, lambda now: status.update(f"recording: {_summary(now)}; Ctrl-C ends"))
        try:
            await recorder.record(url, seconds)
        except FmplexError as e:
            if recorder.progress.since:  # what has come is in the file
                e.message = f"{e.message}; {_summary(recorder.progress)} are in {file}"
            raise
    if not recorder.progress.since:
        raise InvalidInput(f"interrupted before a worker had answered; {file} was not written")
    out.print(f"[bold]{file}[/]: {_summary(recorder.progress)}", highlight=False)
    for worker in sorted(recorder.progress.silent):
        err.print(f"{worker} does not answer: its last passes are not in {file}", highlight=False)


def _summary(now: RecordingProgress) -> str:
    missing = f" ({now.missing} more were not told of)" if now.missing else ""
    return f"{now.passes} passes{missing}, {now.jobs} jobs, {len(now.vfms)} vFMs"


def _draw(file: Path, picture: Path, page: Path) -> None:
    from fmplex.tracing.page import draw_page
    from fmplex.tracing.picture import draw_picture

    with out.status("drawing"):
        chart = make_chart(read_recording(file))
        try:
            draw_picture(chart, picture)
            draw_page(chart, page)
        except OSError as e:
            raise InvalidInput(f"{e.filename} cannot be written: {e.strerror}", field="plot") from e
    out.print(f"[bold]{picture}[/], [bold]{page}[/] (open it in a browser to zoom)", highlight=False)
