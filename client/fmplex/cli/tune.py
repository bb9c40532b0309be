"""`fmplex tune`: submit, list, show, cancel, pause, resume, logs, wait."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from fmplex.cli.adapters import read_ia3, read_lora
from fmplex.cli.common import ApiKey, AsJson, Url, err, open_client, out, parse_params, print_json
from fmplex.cli.plotting import draw_both, pictures
from fmplex.columns import Column, FittedTable
from fmplex.tunes.core import now_of, why_failed
from fmplex.tunes.curve import make_curve
from fmplex.tunes.records import TuneEventInfo, TuneInfo
from fmplex.tunes.sync import Tune
from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.files import is_file_id

app = typer.Typer(help="Train vFMs on the fleet, beside what it serves.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="Id of the tuning job, as `fmplex tune submit` printed it.")]
_CHECKED_S, _LOOK_S = 60.0, 0.2  # that files may take to be looked through before the job is left to itself
_FOLLOW_S = 1.0
_OWN = {
    "data": "DATA", "model": "--model", "name": "--as", "head": "--head", "validation": "--validation", "lora": "--lora",
    "epochs": "--epochs", "batch_size": "--batch-size", "learning_rate": "--lr", "seed": "--seed", "weight": "--weight",
    "publish": "--as, --update, --canary or --no-publish", "metadata": "in the API",
}  # fmt: skip
_COLUMNS = (
    Column("job"), Column("status", left=True), Column("model", left=True), Column("makes", left=True), Column("step"),
    Column("loss", 2), Column("validation", 2), Column("begun", 1, left=True),
)  # fmt: skip


@app.command()
def submit(
    data: Annotated[str, typer.Argument(help="JSON lines, a JSON array, CSV or TSV, as `fmplex fit` takes them; "
                                             "conversations; or the id of an uploaded file.")],
    model: Annotated[str, typer.Option(help="Backbone for a new vFM, or a vFM to go on from: NAME[@VERSION|@CHECKPOINT].")],
    head: Annotated[str | None, typer.Option(help="Its kind. Default: that of the vFM, else what the data are for.")] = None,
    as_name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Publish as a new vFM of this name.")] = None,
    update: Annotated[str | None, typer.Option(metavar="NAME", help="Publish as the next version of this vFM.")] = None,
    generation: Annotated[int | None, typer.Option(help="That the vFM of --update must still have.")] = None,
    canary: Annotated[str | None, typer.Option(metavar="NAME", help="Publish beside this vFM, to try it.")] = None,
    no_publish: Annotated[bool, typer.Option("--no-publish", help="Keep checkpoints only.")] = False,
    validation: Annotated[str | None, typer.Option(help="File of examples to choose the best checkpoint by.")] = None,
    lora: Annotated[str | None, typer.Option(help="r=8[,alpha=16][,dropout=0.1][,targets=query+value].")] = None,
    ia3: Annotated[str | None, typer.Option(help="(IA)³ instead of LoRA: all, or targets=query+value.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut over-long texts, now and when it is called.")] = False,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Mix the examples first; --seed decides how.")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    weight: Annotated[float, typer.Option(help="Its part of the device against other tuning jobs.")] = 1.0,
    fit: Annotated[list[str] | None, typer.Option("--fit", "-f", metavar="NAME=VALUE", help="What else the API's `fit` has, e.g. "
                   "-f hidden=[64] -f pooling=cls -f held_out=0.1 -f 'system=Be brief.'; VALUE is JSON, or else a text.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Order the training of a vFM from a file; it goes on when this command has ended.

    Bad lines are named before anything is trained; the exit code is then 1.
    """
    options = {"truncate": truncate or None, "shuffle": shuffle or None, "ia3": read_ia3(ia3), **_options(fit)}
    publish = _publish(as_name, update, generation, canary, no_publish)
    with open_client(url, api_key) as client:
        with err.status("sending"):
            job = client.tune(
                _source(data), model=model, head=head, validation=None if validation is None else _source(validation),
                lora=read_lora(lora), epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed,
                weight=weight, publish=publish, **options,
            )  # fmt: skip
            _see_it_taken(job)
        if wait:
            _wait(job)
        if as_json:
            print_json(job.info.plain())
        elif not wait:
            _say(f"[bold]{job.id}[/] {job.status}; how it does: fmplex tune wait {job.id}")


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
        _wait(job)
    if as_json:
        print_json(job.info.plain())


# --- inner ---


def _source(data: str) -> str | Path:
    return data if is_file_id(data) else Path(data)


def _options(given: list[str] | None) -> dict[str, Any]:
    """Read `--fit` options. Raises `InvalidInput` for one that has an option of its own."""
    options = parse_params(given)
    if taken := options.keys() & _OWN:
        raise InvalidInput(f"--fit {min(taken)}: this has an option of its own, {_OWN[min(taken)]}", field="fit")
    return options


def _publish(
    name: str | None, update: str | None, generation: int | None, canary: str | None, nothing: bool
) -> dict[str, Any] | None:
    given = [(how, vfm) for how, vfm in (("as", name), ("update", update), ("canary", canary)) if vfm is not None]
    if len(given) + nothing > 1:
        raise InvalidInput("give one of --as, --update, --canary and --no-publish", field="publish")
    if generation is not None and update is None:
        raise InvalidInput("--generation is of the vFM that --update names", field="generation")
    if nothing:
        return {"how": "none"}
    return {"how": given[0][0], "vfm": given[0][1], "generation": generation} if given else None


def _see_it_taken(job: Tune) -> None:
    """Wait until the fleet has looked through the files. Raises `InvalidInput` if it does not take them."""
    begun = time.monotonic()
    while job.status == "validating_files" and time.monotonic() - begun < _CHECKED_S:
        time.sleep(_LOOK_S)
        job.refresh()
    if job.status == "failed":
        raise why_failed(job.info)


def _wait(job: Tune) -> None:
    """Wait for the end of a job, with a bar. Ctrl-C leaves it to itself and says how to come back."""
    try:
        info = job.wait(progress=True)
    except KeyboardInterrupt:
        _say(f"{job.id} goes on; to come back: fmplex tune wait {job.id}", to_err=True)
        raise typer.Exit(130) from None
    if info.status == "failed":
        raise why_failed(info)
    took = timedelta(seconds=max(0, (info.finished_at or info.created_at) - info.created_at))
    made = f", serves as {info.fine_tuned_model}" if info.fine_tuned_model else ""
    _say(f"{info.id} {info.status} after {took}{made}: {now_of(info)}", to_err=True)
    if info.status != "succeeded":
        raise typer.Exit(1)


def _told(info: TuneInfo) -> None:
    _say(f"[bold]{info.id}[/] {info.status}")


def _say(words: str, *, to_err: bool = False) -> None:
    (err if to_err else out).print(words, highlight=False, soft_wrap=True)


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
