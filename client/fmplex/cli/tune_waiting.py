"""Waiting for tuning jobs at the terminal, and saying what came of them."""

from __future__ import annotations

from datetime import timedelta

import typer

from fmplex.cli.common import err, out
from fmplex.tunes.core import now_of, why_failed
from fmplex.tunes.sync import Tune


def wait_for(job: Tune) -> None:
    """Wait for the end of a job, with a bar. Ctrl-C leaves it to itself and says how to come back."""
    try:
        info = job.wait(progress=True)
    except KeyboardInterrupt:
        say(f"{job.id} goes on; to come back: fmplex tune wait {job.id}", to_err=True)
        raise typer.Exit(130) from None
    if info.status == "failed":
        raise why_failed(info)
    took = timedelta(seconds=max(0, (info.finished_at or info.created_at) - info.created_at))
    made = f", serves as {info.fine_tuned_model}" if info.fine_tuned_model else ""
    say(f"{info.id} {info.status} after {took}{made}: {now_of(info)}", to_err=True)
    if info.status != "succeeded":
        raise typer.Exit(1)


def say(words: str, *, to_err: bool = False) -> None:
    """Print a line, on standard output or, with `to_err`, on standard error."""
    (err if to_err else out).print(words, highlight=False, soft_wrap=True)
