"""`fmplex trace`: record what is in each pass of each worker, and draw who was served when."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fmplex.cli.common import broker_url, err, out
from fmplex.cli.plotting import draw_both, pictures
from fmplex.tracing.chart import make_chart
from fmplex.tracing.recording import must_be_new, read_recording
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
    drawn = _pictures(plot, file) if plot is not None else None
    if plot is None or seconds is not None or not file.exists():
        must_be_new(file)
        asyncio.run(_record(file, broker_url(broker), seconds))
    if drawn is not None:
        _draw(file, drawn)


def _pictures(plot: Path, recording: Path) -> tuple[Path, Path]:
    """Return the paths of picture and page. Raises `InvalidInput`: better before a recording than after it."""
    drawn = pictures(plot)
    if recording.resolve() in {path.resolve() for path in drawn}:
        raise InvalidInput(f"--plot would overwrite the recording {recording}; give it another name", field="plot")
    return drawn


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


def _draw(file: Path, drawn: tuple[Path, Path]) -> None:
    from fmplex.tracing.page import draw_page
    from fmplex.tracing.picture import draw_picture

    with out.status("reading"):
        chart = make_chart(read_recording(file))
    draw_both(chart, drawn, draw_picture, draw_page)
