"""The commands of `fmplex`, but for those in modules of their own."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from fmplex.cli import batches, show, tune, vfms
from fmplex.cli import chat as chat_command
from fmplex.cli import deploy as deploy_command
from fmplex.cli import fit as fit_command
from fmplex.cli import infer as infer_command
from fmplex.cli import pack as pack_commands
from fmplex.cli import queues as queues_command
from fmplex.cli import submit as submit_command
from fmplex.cli import trace as trace_command
from fmplex.cli.common import AsJson, broker_url, err, out
from fmplex.cli.plotting import draw_both, pictures
from fmplex.listed import apply_listed
from fmplex.local import LocalFleet, without_password
from fmplex.reviving import Reviver
from fmplex.running import announce
from fmplex.sync import Client
from fmplex_broker.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Serve many customised versions of one foundation model on one shared backbone.")  # fmt: skip
app.add_typer(vfms.app, name="vfms")
app.add_typer(batches.app, name="batches")
app.add_typer(tune.app, name="tune")
app.command("fit")(fit_command.fit)
app.command("chat")(chat_command.chat)
app.command("trace")(trace_command.trace)
app.command("deploy")(deploy_command.deploy)
app.command("infer")(infer_command.infer)
app.command("submit")(submit_command.submit)
app.command("queues")(queues_command.queues)
for command in (pack_commands.pack, pack_commands.inspect, pack_commands.schema):
    app.command()(command)


@app.command()
def up(
    config: Annotated[Path, typer.Option("--config", "-c", help="Fleet file (TOML).")] = Path("configs/minilm.toml"),
    workers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N or NAME=N",
            help="Worker processes on this machine for every "
            "backbone, or for one; may be given often. Default: as the fleet file says.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Gateway port; 0 takes a free one.")] = None,
    data: Annotated[Path, typer.Option(help="Folder for the embedded broker's data and the logs.")] = Path(".fmplex"),
) -> None:
    """Start broker, workers and gateway on this machine and keep them until Ctrl-C."""
    # From here on a signal ends the fleet in order, also while it starts.
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, _interrupt)
    fleet = LocalFleet(config, workers=_worker_counts(workers), port=port, data=data)
    try:
        with out.status("starting") as status:
            fleet.start(status.update)
        announced = announce(fleet.gateway_url, fleet.broker_url, fleet.artifacts, str(config.resolve()))
        with Client(fleet.broker_url, artifacts=fleet.artifacts) as client:  # beside the broker nobody asks for a key
            for line in apply_listed(client, [*fleet.spec.vfms, *fleet.spec.packages]):
                out.print(line, markup=False, soft_wrap=True)
            show.print_vfms(client.vfms.list(limit=50), client.vfms.count())
        broker = without_password(fleet.broker_url)
        out.print(f"gateway [bold]{fleet.gateway_url}[/]   broker [bold]{broker}[/]   logs {fleet.data}/*.log")
        if not announced:
            out.print(
                f"commands in this folder speak to another fleet that runs; --url {fleet.gateway_url} is this one"
            )
        out.print("Ctrl-C stops; waiting jobs stay in the broker's file and are served after the next start.")
        _watch(fleet)
    except KeyboardInterrupt:
        pass
    finally:
        with out.status("stopping: running jobs end, waiting ones stay in the broker"):
            fleet.stop()


def _worker_counts(given: list[str] | None) -> int | dict[str, int] | None:
    """Read `--workers`: N for all backbones, or NAME=N. Raises `InvalidInput`."""
    if not given:
        return None
    counts: dict[str, int] = {}
    for item in given:
        name, _, number = item.rpartition("=")
        if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 1024) or (not name and len(given) > 1):
            raise InvalidInput(
                f"--workers {item!r}: write N, or NAME=N for each backbone; N from 1 to 1024", field="workers"
            )
        counts[name] = int(number)
    return counts.get("", counts)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _watch(fleet: LocalFleet) -> None:
    """Start processes again that end, until interrupted."""
    reviver = Reviver(fleet)
    while True:
        for line in reviver.look(time.monotonic()):
            err.print(line, markup=False, soft_wrap=True)
        time.sleep(0.2)


@app.command()
def demo(
    report: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file too.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long the mixed traffic, or the measuring, lasts.")] = 15.0,
    generation: Annotated[bool, typer.Option("--generation", help="Texts that grow side by side instead.")] = False,
    tuning: Annotated[
        bool, typer.Option("--tuning", help="A vFM that is trained beside its neighbours instead.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Of --tuning: draw its two curves, OUT.png and OUT.html.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", hidden=True, help="Train for seconds; nonsense comes out.")] = False,
) -> None:
    """Show the main job from end to end: fit a dozen vFMs on one real encoder, serve mixed traffic, and show what sharing gives.

    With --generation: train a small decoder on Python's own documentation and LoRAs that give it voices, in a few minutes (kept
    for the next time), and let all of them speak at once. With --tuning: train a vFM further beside its neighbours' traffic,
    in less than three minutes, and show that it improves and that they are answered in time.
    """
    if generation and tuning:
        raise InvalidInput("give one of --generation and --tuning", field="tuning")
    if tuning:
        raise typer.Exit(_demo_tuning(report, seconds, plot, quick=quick))
    if plot is not None:
        raise InvalidInput("--plot is of --tuning", field="plot")
    if generation:
        from fmplex.demo.generation.run import run_demo as run_generation

        raise typer.Exit(run_generation(out, report, seconds, quick=quick))
    from fmplex.demo.run import run_demo

    raise typer.Exit(run_demo(out, report, seconds))


def _demo_tuning(report: Path | None, seconds: float, plot: Path | None, *, quick: bool) -> int:
    from fmplex.demo.tuning.run import run_demo

    drawn = None if plot is None else pictures(plot)
    code, curves = run_demo(out, report, seconds, quick=quick)
    if drawn is not None and curves is not None:
        from fmplex.demo.tuning.drawing import draw_page, draw_picture

        draw_both(curves, drawn, draw_picture, draw_page)
    return code


@app.command()
def top(
    broker: Annotated[str | None, typer.Option(help="Broker URL; default: the fleet that runs here.")] = None,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 1.0,
    limit: Annotated[int, typer.Option(min=1, help="vFMs to show, busiest first.")] = 30,
    once: Annotated[bool, typer.Option("--once", help="Two looks, one table, done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a live view, from the broker: depth, oldest wait, rate, latency and share of every vFM; tokens of those that
    generate; load of every worker. A narrow terminal shows fewer columns; --json tells all."""
    from fmplex.cli.top import run_top

    asyncio.run(run_top(broker_url(broker), interval, limit, once=once or as_json, as_json=as_json))
