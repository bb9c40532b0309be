"""`fmplex vfms`: list, show, update, remove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fmplex.cli import show as tables
from fmplex.cli.common import ApiKey, AsJson, Url, open_client, out, print_json
from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.vfm_info import VfmInfo

app = typer.Typer(help="List vFMs (default), show, update or remove one.", invoke_without_command=True)
Name = Annotated[str, typer.Argument(help="Name of the vFM.")]


@app.callback()
def list_vfms(
    context: typer.Context,
    match: Annotated[str, typer.Option(help="Only names that match this pattern, e.g. 'team-a-*'.")] = "*",
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="List all of them.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List vFMs, unless a subcommand follows."""
    context.obj = {"url": url, "api_key": api_key}  # given before a subcommand, they hold for it too
    if context.invoked_subcommand is not None:
        return
    with open_client(url, api_key) as client:
        found = client.vfms.list(match, None if everything else limit)
        total = len(found) if len(found) < limit else client.vfms.count(match)
    if as_json:
        print_json([vfm.plain() for vfm in found])
    else:
        tables.print_vfms(found, total)


@app.command()
def show(context: typer.Context, name: Name, url: Url = None, api_key: ApiKey = None) -> None:
    """Show everything known of one vFM, as JSON."""
    with open_client(url or context.obj["url"], api_key or context.obj["api_key"]) as client:
        print_json(client.vfms.show(name).plain())


@app.command()
def update(
    context: typer.Context,
    name: Name,
    weight: Annotated[float | None, typer.Option(help="Share of the device against the other vFMs.")] = None,
    max_pending: Annotated[int | None, typer.Option(help="Jobs waiting or running at most.")] = None,
    max_pending_bytes: Annotated[int | None, typer.Option(help="Bytes of these in the broker at most.")] = None,
    max_call_bytes: Annotated[int | None, typer.Option(help="Bytes of the jobs of one call at most.")] = None,
    rate: Annotated[float | None, typer.Option(help="Tokens per second; 0 lifts the limit.")] = None,
    deadline_ms: Annotated[
        int | None, typer.Option(help="How long a caller waits if it does not say; 0: the default.")
    ] = None,
    latency_ms: Annotated[int | None, typer.Option(help="Latency target; 0 lifts it.")] = None,
    ttft_ms: Annotated[int | None, typer.Option(help="Target for a text's first token; 0 lifts it.")] = None,
    inter_token_ms: Annotated[int | None, typer.Option(help="Target from token to token; 0 lifts it.")] = None,
    package: Annotated[Path | None, typer.Option(help="Package folder: a new version.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Change a vFM while it serves."""
    times = {"deadline_ms": deadline_ms, "latency_ms": latency_ms, "ttft_ms": ttft_ms, "inter_token_ms": inter_token_ms}
    limits = _given(max_pending=max_pending, max_pending_bytes=max_pending_bytes, max_call_bytes=max_call_bytes)
    limits |= {} if rate is None else {"rate": rate or None}
    slo = {name: ms or None for name, ms in times.items() if ms is not None}
    change = _given(weight=weight, limits=limits or None, slo=slo or None)
    if not change and package is None:
        options = (
            "--weight, --max-pending, --max-pending-bytes, --max-call-bytes, --rate, --deadline-ms, --latency-ms, "
            "--ttft-ms, --inter-token-ms or --package"
        )
        raise InvalidInput(f"nothing to change: give {options}")
    with open_client(url or context.obj["url"], api_key or context.obj["api_key"]) as client:
        changed = client.vfms.update(name, package, **change)
    _print_changed(changed)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def rollback(
    context: typer.Context,
    name: Name,
    version: Annotated[str | None, typer.Option(help="Which of the earlier versions; default: the last one.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Serve an earlier version again; `vfms show` lists them."""
    with open_client(url or context.obj["url"], api_key or context.obj["api_key"]) as client:
        _print_changed(client.vfms.roll_back(name, version))


def _print_changed(vfm: VfmInfo) -> None:
    out.print(f"[bold]{vfm.name}[/]: weight {vfm.weight or 0:g}, version {vfm.version}, {vfm.status}")


@app.command()
def remove(context: typer.Context, name: Name, url: Url = None, api_key: ApiKey = None) -> None:
    """End a vFM: closed at once, drained, then every trace of it goes."""
    with open_client(url or context.obj["url"], api_key or context.obj["api_key"]) as client:
        client.vfms.remove(name)
    out.print(f"[bold]{name}[/] is gone")


@app.command()
def prune(context: typer.Context, url: Url = None, api_key: ApiKey = None) -> None:
    """Delete stored packages that no vFM serves, has on offer or could be rolled back to."""
    with open_client(url or context.obj["url"], api_key or context.obj["api_key"]) as client:
        gone = client.vfms.prune()
    out.print(f"{len(gone)} packages deleted")
