"""`fmplex tune submit`: order the training of a vFM."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fmplex.cli.adapters import read_ia3, read_lora
from fmplex.cli.common import ApiKey, AsJson, Url, err, open_client, parse_params, print_json
from fmplex.cli.tune_waiting import say, wait_for
from fmplex.tunes.core import why_failed
from fmplex.tunes.sync import Tune
from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.files import is_file_id

_CHECKED_S, _LOOK_S = 60.0, 0.2  # that files may take to be looked through before the job is left to itself
_OWN = {
    "data": "DATA", "model": "--model", "name": "--as", "head": "--head", "validation": "--validation", "lora": "--lora",
    "ia3": "--ia3", "epochs": "--epochs", "learning_rate": "--lr", "seed": "--seed",
    "publish": "--as, --update, --canary or --no-publish",
}  # fmt: skip
_HELP = (
    "What else the API takes: -o shuffle=true -o truncate=true -o batch_size=8 -o weight=2 -o hidden=[64] -o held_out=0.1 "
    "-o 'system=Be brief.'; VALUE is JSON, or else a text. May be given often."
)


def submit(
    data: Annotated[str, typer.Argument(help="Examples, as `fmplex fit` takes them; conversations; or the id of a file.")],
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
    learning_rate: Annotated[float | None, typer.Option("--lr")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", metavar="NAME=VALUE", help=_HELP)] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Order the training of a vFM from a file; it goes on when this command has ended.

    Bad lines are named before anything is trained; the exit code is then 1.
    """
    publish = _publish(as_name, update, generation, canary, no_publish)
    with open_client(url, api_key) as client:
        with err.status("sending"):
            job = client.tune(
                _source(data), model=model, head=head, validation=None if validation is None else _source(validation),
                lora=read_lora(lora), ia3=read_ia3(ia3), epochs=epochs, learning_rate=learning_rate, seed=seed, publish=publish,
                **_options(option),
            )  # fmt: skip
            _see_it_taken(job)
        if wait:
            wait_for(job)
        if as_json:
            print_json(job.info.plain())
        elif not wait:
            say(f"[bold]{job.id}[/] {job.status}; how it does: fmplex tune wait {job.id}")


def _source(data: str) -> str | Path:
    return data if is_file_id(data) else Path(data)


def _options(given: list[str] | None) -> dict[str, Any]:
    """Read `--option`s. Raises `InvalidInput` for one that has a name of its own."""
    options = parse_params(given)
    if taken := options.keys() & _OWN:
        raise InvalidInput(f"--option {min(taken)}: this is {_OWN[min(taken)]}", field="option")
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
