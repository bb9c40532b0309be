"""The command line: `fmplex --help`."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from fmplex.cli.app import app
from fmplex_broker.errors import FmplexError


def main() -> None:
    """Run the command line; a typed error becomes one clear line and exit code 1."""
    try:
        app()
    except FmplexError as e:
        Console(stderr=True).print(f"[bold red]{e.code}[/]: {escape(e.message)}", highlight=False, soft_wrap=True)
        sys.exit(1)
