"""`fmplex fit`: train a vFM package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fmplex.cli.common import AsJson, err, out, print_json
from fmplex.fitting import DEFAULT_FLEET as FLEET
from fmplex.fitting import fit as run_fit
from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fitting import FitDone, FitEpoch, FitEvent, FitStarted


def fit(
    data: Annotated[Path, typer.Argument(help="JSON lines, a JSON array (.json), CSV or TSV with a line of column names.")],
    head: Annotated[str, typer.Option(help="embedding, classification, regression, tagging, similarity or ranking.")],
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the package. Default: vfms/NAME.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Name of the backbone to live on. Default: from --config.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id, package://NAME/FOLDER. Default: from --config.")] = None,
    config: Annotated[Path, typer.Option("--config", "-c", help="Fleet file with the model: that of `fmplex up`.")] = FLEET,
    name: Annotated[str | None, typer.Option(help="Name of the vFM. Default: the data file's.")] = None,
    lora: Annotated[str | None, typer.Option(help="LoRA too: r=8[,alpha=16][,dropout=0.1][,targets=query+value].")] = None,
    ia3: Annotated[str | None, typer.Option(help="(IA)³ instead of LoRA: all, or targets=query+value[,feedforward=…].")] = None,
    hidden: Annotated[str | None, typer.Option(help="Widths of hidden layers of the head, e.g. 64 or 128,64.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most; training stops early.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Default: a good one for the kind.")] = None,
    pooling: Annotated[str | None, typer.Option(help="mean, cls or last. Default: the backbone's own.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut over-long texts, now and when it is called.")] = False,
    held_out: Annotated[float, typer.Option(help="Share of the data (its last lines) to score on.")] = 1 / 3,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Mix the examples first; --seed decides how.")] = False,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without progress before stopping.")] = 5,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Train a vFM package from labelled texts: a head on the frozen backbone, or an adapter and a head."""
    options: dict[str, Any] = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "pooling": pooling,
        "held_out": held_out, "shuffle": shuffle, "truncate": truncate, "patience": patience, "seed": seed,
        "lora": _named("--lora", lora, "r=8,alpha=16"), "ia3": _named("--ia3", ia3, "targets=query+value"),
        "hidden": () if hidden is None else hidden.split(","),
    }  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=out, disable=as_json) as progress:
        bar = progress.add_task("loading the backbone", total=None, note="")
        done = run_fit(
            data, name=name, backbone=backbone, model=model, config=config, head=head, out=output,  # type: ignore[arg-type]
            on_event=lambda e: _draw(progress, bar, e), **options,
        )  # fmt: skip
    if as_json:
        print_json(done.model_dump(mode="json"))
    else:
        _summary(done)


def _named(option: str, text: str | None, example: str) -> Any:
    """Read `r=8,alpha=16,targets=query+value`, or `all` for the defaults. Raises `InvalidInput`."""
    if text is None:
        return None
    options: dict[str, Any] = {}
    for part in () if text == "all" else text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidInput(f"{option} {text!r}: write it as {example}", field=option.removeprefix("--"))
        options[key.strip()] = value.split("+") if key.strip() in ("targets", "feedforward") else value
    return options


def _draw(progress: Progress, bar: Any, event: FitEvent) -> None:
    if isinstance(event, FitStarted):
        if event.ignored:
            err.print(f"not used: {', '.join(event.ignored)}", markup=False, highlight=False, soft_wrap=True)
        progress.update(bar, description=event.name, note=f"{event.train} to train on, {event.held_out} held out")
    elif isinstance(event, FitEpoch):
        note = f"loss {event.loss:.4f}  validation {event.score:.3f}"
        progress.update(bar, total=event.epochs, completed=event.epoch, note=note)
    elif isinstance(event, FitDone):
        progress.update(bar, total=event.epochs, completed=event.epochs)


def _summary(done: FitDone) -> None:
    out.print(
        f"[bold]{done.name}[/]: held-out {done.metric} [bold]{done.score:.3f}[/] (baseline {done.baseline:.3f}) after "
        f"{done.epochs} epochs, {done.seconds:.1f} s\nartifact {done.artifact} in {done.out}; "
        f"serve it with: fmplex deploy {done.out}"
    )
