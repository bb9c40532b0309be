"""Options, consoles and look-ups that the commands share."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console

from fmplex.running import running
from fmplex.sync import Client
from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.broker_url import check_broker_url

out = Console(width=None if sys.stdout.isatty() else 140)  # a log or a pipe has no width to respect
err = Console(stderr=True)

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="FMPLEX_URL", help="http://… (gateway) or redis://…, unix://… (broker). Default: the fleet that "
                 "`fmplex up` runs from this folder, else http://127.0.0.1:8080.", show_default=False),
]  # fmt: skip
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="FMPLEX_API_KEY", help="Key for a gateway that asks for one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter of the call, e.g. -p max_tokens=100 -p temperature=0 "
                 "-p 'stop=[\"\\n\"]'; VALUE is JSON, or else a text. May be given often.", show_default=False),
]  # fmt: skip

_RESERVED = frozenset(
    {"vfm", "value", "inputs", "stream", "timeout", "idempotency_key", "window", "progress", "on_error"}
)


def open_client(url: str | None, api_key: str | None = None) -> Client:
    """Open a client of `url`, by default of the fleet that `fmplex up` runs here. Raises `InvalidInput`."""
    fleet = running()
    return Client(
        url or fleet.get("gateway") or "http://127.0.0.1:8080", api_key=api_key, artifacts=fleet.get("artifacts")
    )


def parse_params(given: list[str] | None) -> dict[str, Any]:
    """Read `--param NAME=VALUE` options; a VALUE is JSON, or else a text. Raises `InvalidInput`."""
    params: dict[str, Any] = {}
    for item in given or ():
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier() or name in _RESERVED:
            raise InvalidInput(
                f"--param {item!r}: write it as NAME=VALUE, with a parameter of the call", field="params"
            )
        try:
            params[name] = json.loads(text)
        except ValueError:
            params[name] = text
    return params


def broker_url(given: str | None) -> str:
    """Return the URL of the broker to look at. Raises `InvalidInput` when none is known, or it is not a broker's URL."""
    found = given or os.environ.get("FMPLEX_BROKER") or running().get("broker")
    if not found:
        raise InvalidInput("which broker? give --broker redis://…, or run this where `fmplex up` runs", field="broker")
    return check_broker_url(found)


def print_json(value: Any, file: TextIO | None = None) -> None:
    """Print a value, to `file` if it is given, as one line of JSON; tensors become lists."""
    typer.echo(json.dumps(value, default=_to_plain), file)


def _to_plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
