"""The command line: `fmplex --help`."""

from __future__ import annotations

import sys

from rich.console import Console

from fmplex.cli.app import app
from fmplex_broker.errors import FmplexError


def main() -> None:
    """Run the command line; a typed error becomes one clear line and exit code 1."""
    try:
        app()
    except FmplexError as e:
        Console(stderr=True).print(f"[bold red]{e.code}[/]: {e.message}", highlight=False, markup=True)
        sys.exit(1)
