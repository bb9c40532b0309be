"""`fmplex tune`: submit, list, show, cancel, pause, resume, logs, wait, deploy."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from fmplex.cli.common import ApiKey, AsJson, Url, err, open_client, out, print_json
from fmplex.cli.plotting import draw_both, pictures
from fmplex.cli.tune_submit import submit
from fmplex.cli.tune_waiting import say, wait_for
from fmplex.columns import Column, FittedTable
from fmplex.tunes.curve import make_curve
from fmplex.tunes.records import TuneEventInfo, TuneInfo

app = typer.Typer(help="Train vFMs on the fleet, beside what it serves.", no_args_is_help=True)
app.command()(submit)
Id = Annotated[str, typer.Argument(help="Id of the tuning job, as `fmplex tune submit` printed it.")]
_FOLLOW_S = 1.0
_COLUMNS = (
    Column("job"), Column("status", left=True), Column("model", left=True), Column("makes", left=True), Column("step"),
    Column("loss", 2), Column("validation", 2), Column("begun", 1, left=True),
)  # fmt: skip


@app.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="How many to list, newest first.")] = 20,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List tuning jobs, newest first."""
    with open_client(url, api_key) as client:
        found = [job.info for job in client.tunes.list(limit)]
    if as_json:
        print_json([info.plain() for info in found])
    else:
        out.print(FittedTable(_COLUMNS, map(_cells, found)) if found else "there are no tuning jobs")


@app.command()
def show(
    id: Id,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Draw the loss curve: OUT.png, and OUT.html.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show everything known of one tuning job and its checkpoints, as JSON; or draw its loss curve."""
    drawn = pictures(plot) if plot is not None else None
    with open_client(url, api_key) as client:
        job = client.tunes.get(id)
        checkpoints = job.checkpoints()
        if drawn is None:
            print_json(job.info.plain() | {"checkpoints": [one.model_dump(mode="json") for one in checkpoints]})
            return
        curve = make_curve(job.info, job.events(), checkpoints)
    from fmplex.tunes.drawing import draw_page, draw_picture

    draw_both(curve, drawn, draw_picture, draw_page)


@app.command()
def cancel(id: Id, url: Url = None, api_key: ApiKey = None) -> None:
    """End a tuning job; what was learnt stays in its checkpoints."""
    with open_client(url, api_key) as client:
        _told(client.tunes.get(id).cancel())


@app.command()
def pause(id: Id, url: Url = None, api_key: ApiKey = None) -> None:
    """Let a tuning job rest; what was learnt is kept."""
    with open_client(url, api_key) as client:
        _told(client.tunes.get(id).pause())


@app.command()
def resume(id: Id, url: Url = None, api_key: ApiKey = None) -> None:
    """Let a paused tuning job go on from where it was."""
    with open_client(url, api_key) as client:
        _told(client.tunes.get(id).resume())


@app.command()
def logs(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Print what a tuning job has said, oldest first."""
    with open_client(url, api_key) as client:
        job, last, more = client.tunes.get(id), None, True
        while more:
            more = follow and not job.refresh().ended  # looked at first: nothing is said after its end
            for event in job.events(last):
                _print_event(event, as_json=as_json)
                last = event.id
            if more:
                time.sleep(_FOLLOW_S)


@app.command()
def wait(id: Id, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Wait for a tuning job's end, with a bar: step, loss, validation, tokens a second, share of the device, time left. The exit
    code is 1 if it has not succeeded."""
    with open_client(url, api_key) as client:
        job = client.tunes.get(id)
        wait_for(job)
    if as_json:
        print_json(job.info.plain())


@app.command()
def deploy(
    checkpoint: Annotated[str, typer.Argument(help="Id of a checkpoint (ftckpt-…), as `fmplex tune show` lists them.")],
    name: Annotated[str, typer.Option("--name", help="Name of the vFM that it becomes.")],
    update: Annotated[bool, typer.Option("--update", help="It is there: make this its next version.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Deploy a checkpoint as a vFM, whichever it is and while its job goes on."""
    with open_client(url, api_key) as client, err.status("every worker loads it"):
        vfm = client.tunes.deploy(checkpoint, name, update=update)
    say(f"[bold]{vfm.name}[/] serves version {vfm.version}")


# --- inner ---


def _told(info: TuneInfo) -> None:
    say(f"[bold]{info.id}[/] {info.status}")


def _print_event(event: TuneEventInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(event.model_dump(mode="json"))
        return
    when = datetime.fromtimestamp(event.created_at).isoformat(" ", "seconds")
    style = {"warn": "yellow", "error": "red"}.get(event.level)
    out.print(f"{when}  {event.message}", markup=False, highlight=False, soft_wrap=True, style=style)


def _cells(info: TuneInfo) -> list[str]:
    progress = info.progress
    begun = datetime.fromtimestamp(info.created_at).isoformat(" ", "minutes")
    step = f"{progress.step}/{progress.steps}" if progress.steps else ""
    return [
        info.id, info.status, info.model, info.makes, step, _figure(progress.loss),
        _figure(progress.validation), begun,
    ]  # fmt: skip


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
