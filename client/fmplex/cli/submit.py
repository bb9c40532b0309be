"""`fmplex submit`: many inputs, to be answered from spare capacity."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from fmplex.batches.core import why_failed
from fmplex.batches.sync import Batch
from fmplex.cli.batches import OutputFile, check_output, deliver, how_to_come_back, wait_for
from fmplex.cli.common import ApiKey, AsJson, Params, Url, err, open_client, out, parse_params, print_json
from fmplex_broker.errors import InvalidInput

_CHECKED_S = 60.0  # that a file may take to be looked through before it is left to itself
_LOOK_S = 0.2

Source = Annotated[
    Path,
    typer.Argument(
        help="A file: a text a line, .jsonl (JSON inputs, or requests as OpenAI's batches have them), .csv or .tsv; or a "
        "folder, each file of which is a text."
    ),
]


def submit(
    source: Source,
    vfm: Annotated[str | None, typer.Option(help="Name of the vFM; requests name theirs themselves.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, and print the results.")] = False,
    output: OutputFile = None,
    column: Annotated[str, typer.Option(help="Column of a table that has the texts.")] = "text",
    window: Annotated[str, typer.Option(help="How long it may take: 5m to 7d.")] = "24h",
    param: Params = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Send a file or folder of inputs as a batch, which the fleet answers from spare capacity; it goes on when this command has
    ended. With --wait or -o: wait, and give the results in the order of the inputs, a line of JSON each.

    What is wrong with a line is told in its place and stops no other; the exit code is then 1.
    """
    check_output(output, source)
    with open_client(url, api_key) as client:
        with err.status("sending"):
            batch = client.batches.submit(
                source, vfm=vfm, params=parse_params(param), column=column, completion_window=window
            )
            _see_it_taken(batch)
        if not wait and output is None:
            if as_json:
                print_json(batch.info.plain())
            else:
                lines = f"{batch.counts.total} lines" if batch.counts.total else "its lines"
                out.print(
                    f"[bold]{batch.id}[/] {batch.status}: {lines}, within {window}; {how_to_come_back(batch, None)}",
                    highlight=False, soft_wrap=True,
                )  # fmt: skip
            return
        err.print(f"{batch.id}: {how_to_come_back(batch, output)}", markup=False, highlight=False, soft_wrap=True)
        wait_for(batch, output)
        deliver(batch, output)


def _see_it_taken(batch: Batch) -> None:
    """Wait until the fleet has looked through the file. Raises `InvalidInput` if it does not take it."""
    begun = time.monotonic()
    while batch.status == "validating" and time.monotonic() - begun < _CHECKED_S:
        time.sleep(_LOOK_S)
        batch.refresh()
    if batch.status == "failed":
        raise InvalidInput(why_failed(batch.info), field="inputs")
