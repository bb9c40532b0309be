"""`fmplex batches`: list, show, cancel, fetch; and what `fmplex submit` does with a batch once it is there."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import nullcontext
from datetime import datetime, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import typer

from fmplex.batches.records import BatchInfo
from fmplex.batches.rows import told
from fmplex.batches.sync import Batch
from fmplex.cli.common import ApiKey, AsJson, Url, err, open_client, out, print_json
from fmplex.columns import Column, FittedTable
from fmplex_broker.errors import Conflict, InvalidInput

app = typer.Typer(help="List, show, cancel or fetch offline batches; `fmplex submit` makes them.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="Id of the batch, as `fmplex submit` printed it.")]
OutputFile = Annotated[Path | None, typer.Option("--out", "-o", help="Write the results to this file, as JSON lines.")]
_COLUMNS = (
    Column("batch"), Column("status", left=True), Column("lines"), Column("answered"), Column("failed"),
    Column("endpoint", 2, left=True), Column("begun", 1, left=True), Column("within", 3),
)  # fmt: skip


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, help="How many to list, newest first.")] = 20,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List batches, newest first."""
    with open_client(url, api_key) as client:
        found = [batch.info for batch in client.batches.list(limit)]
    if as_json:
        print_json([info.plain() for info in found])
    else:
        out.print(FittedTable(_COLUMNS, map(_cells, found)) if found else "there are no batches")


def _cells(info: BatchInfo) -> list[str]:
    counts = info.request_counts
    begun = datetime.fromtimestamp(info.created_at).isoformat(" ", "minutes")
    return [
        info.id, info.status, str(counts.total), str(counts.completed), str(counts.failed), info.endpoint, begun,
        info.completion_window,
    ]  # fmt: skip


@app.command()
def show(id: Id, url: Url = None, api_key: ApiKey = None) -> None:
    """Show everything known of one batch, as JSON."""
    with open_client(url, api_key) as client:
        print_json(client.batches.get(id).info.plain())


@app.command()
def cancel(id: Id, url: Url = None, api_key: ApiKey = None) -> None:
    """Cancel a batch: lines that were answered stay answered."""
    with open_client(url, api_key) as client:
        info = client.batches.get(id).cancel()
    out.print(f"[bold]{info.id}[/] {info.status}", highlight=False)


@app.command()
def fetch(
    id: Id,
    output: OutputFile = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end first.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Fetch what came of a batch's lines, in the order of its input: a line of JSON each, with its error if it failed. The exit
    code is 1 if one did."""
    check_output(output)
    with open_client(url, api_key) as client:
        batch = client.batches.get(id)
        if wait:
            wait_for(batch, output)
        elif not batch.info.ended:
            counts = batch.counts
            raise Conflict(
                f"{id} is {batch.status}: {counts.completed + counts.failed} of {counts.total} lines have ended; --wait waits "
                "for the others"
            )
        deliver(batch, output)


def check_output(path: Path | None, source: Path | None = None) -> None:
    """Check that a file for results can be written, before they are worked for. Raises `InvalidInput`."""
    if path is None:
        return
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise InvalidInput(f"{path} is what is read; give another -o FILE", field="out")
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InvalidInput(f"{path} cannot be written ({why}); give another -o FILE", field="out")


def wait_for(batch: Batch, output: Path | None) -> None:
    """Wait for the end of a batch, with a bar. Ctrl-C leaves it to itself and says how to come back."""
    try:
        batch.wait(progress=True)
    except KeyboardInterrupt:
        err.print(
            f"{batch.id} goes on; {how_to_come_back(batch, output)}", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(130) from None


def how_to_come_back(batch: Batch, output: Path | None) -> str:
    """Say how to get the results of a batch later."""
    return f"its results: fmplex batches fetch {batch.id} --wait -o {output or 'OUT.jsonl'}"


def deliver(batch: Batch, output: Path | None) -> None:
    """Write what came of each line of a batch that has ended to a file, or to standard output. What went wrong is said on
    standard error, and makes the exit code 1. Raises `InvalidInput` if its file could not be taken."""
    lines, codes, first = 0, Counter[str](), dict[str, str]()
    results = iter(batch)
    begun = list(islice(results, 1))  # all has been fetched then: no file is left empty for want of a gateway
    with nullcontext() if output is None else output.open("w", encoding="utf-8") as sink:
        for result in chain(begun, results):
            lines += 1
            print_json(told(result), sink)
            if result.error is not None:
                code = result.code or result.error.code
                codes[code] += 1
                first.setdefault(code, f"line {result.line}: {result.error.message}")
    for code, count in codes.most_common():
        err.print(f"{count} × {code}; first {first[code]}", markup=False, highlight=False, soft_wrap=True, style="red")
    if output is not None:
        took = timedelta(seconds=round(max(0.0, _end(batch.info) - batch.info.created_at)))
        out.print(
            f"{lines - codes.total()} of {lines} lines answered, in {output} ({batch.status} after {took})", markup=False,
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if codes or batch.status != "completed":
        raise typer.Exit(1)


def _end(info: BatchInfo) -> float:
    """Return when a batch ended, in seconds since 1970."""
    return info.completed_at or info.expired_at or info.cancelled_at or info.failed_at or time.time()
