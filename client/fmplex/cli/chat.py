"""`fmplex chat`: talk to a generating vFM in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from fmplex.cli.common import ApiKey, Params, Url, err, open_client, parse_params
from fmplex.cli.lines import open_lines, read_lines
from fmplex.cli.show import printable, usage_summary
from fmplex.results import TextStream
from fmplex.sync import Client
from fmplex_broker.errors import FmplexError, InvalidInput


def chat(
    vfm: Annotated[str, typer.Argument(help="Name of a generating vFM.")],
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Say this, print the answer, done. Default: a talk, line by line.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message, instead of the vFM's own.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of an answer; default: the vFM's.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the most likely token.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    param: Params = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds; default: what the vFM promises.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:  # fmt: skip
    """Talk to a generating vFM; answers are printed as they come. Ctrl-C ends an answer, Ctrl-D the talk."""
    named = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    params = {name: value for name, value in named.items() if value is not None} | parse_params(param)
    messages = [{"role": "system", "content": system}] if system is not None else []
    with open_client(url, api_key) as client:
        lines = _lines() if message is None else iter([message])
        for text in lines:
            request = [*messages, {"role": "user", "content": text}]
            try:
                answer = _answer(client, vfm, request, timeout, params)
            except FmplexError as e:
                if message is not None or not sys.stdin.isatty():
                    raise
                err.print(f"{e.code}: {e.message}", markup=False, highlight=False, style="red")
                continue
            messages = [*request, {"role": "assistant", "content": answer}]


def _lines() -> Iterator[str]:
    """Yield the lines that are typed or piped in, empty ones left out. Raises `InvalidInput`."""
    if not sys.stdin.isatty():
        for piped in read_lines(open_lines(None)):
            if piped.error is not None:
                raise InvalidInput(f"line {piped.number} of standard input is {piped.error.message}", field="messages")
            yield piped.value.strip()
        return
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if line:
            yield line


def _answer(
    client: Client, vfm: str, messages: list[dict[str, str]], timeout: float | None, params: dict[str, Any]
) -> str:
    """Print the answer as it comes, and return it; if it is interrupted, what has come of it."""
    pieces: list[str] = []
    begun = time.monotonic()
    with client.stream(vfm, {"messages": messages}, timeout=timeout, **params) as stream:
        try:
            for piece in stream:
                pieces.append(piece)
                typer.echo(printable(piece), nl=False)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        finally:
            if pieces:
                typer.echo()
        _note(stream, time.monotonic() - begun)
    return "".join(pieces)


def _note(stream: TextStream, seconds: float) -> None:
    """Print, for people, how the text ended and how fast it came."""
    if sys.stdout.isatty() and stream.result is not None:
        output = stream.result.output
        rate = output["completion_tokens"] / max(seconds, 1e-3)
        err.print(f"{usage_summary(output)}, {rate:.1f} tokens/s", markup=False, highlight=False, style="dim")
