"""`fmplex infer`: run texts through a vFM, from arguments, a file or a pipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from fmplex.cli import show
from fmplex.cli.common import ApiKey, AsJson, Params, Url, err, open_client, out, parse_params, print_json
from fmplex.cli.lines import Line, as_they_come, open_lines, read_lines
from fmplex.results import Result
from fmplex_broker.errors import FmplexError, InvalidInput, Unavailable

_AT_ONCE = 1024  # lines that are sent together, at most

InputFile = Annotated[Path | None, typer.Option("--in", "-i", help="A file of lines, instead of standard input.")]
OutputFile = Annotated[Path | None, typer.Option("--out", "-o", help="Write results to this file, as JSON lines.")]
AsJsonl = Annotated[bool, typer.Option("--jsonl", help='Lines are JSON: "text", {"text": …}, {"messages": […]}, ….')]


def infer(
    vfm: Annotated[str, typer.Argument(help="Name of the vFM.")],
    inputs: Annotated[list[str] | None, typer.Argument(help="Texts. None: standard input, a text a line.")] = None,
    input_file: InputFile = None,
    output: OutputFile = None,
    jsonl: AsJsonl = False,
    pair: Annotated[str | None, typer.Option(help="Second text, for vFMs that compare two.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut over-long texts instead of refusing them.")] = False,
    param: Params = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds; default: what the vFM promises.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Run texts through a vFM; one output line each, as they come. Texts are taken as they are, whatever they begin with.

    What is wrong with one of them is told on standard error (and, as JSON, in its place), the others go on; the exit code is
    then 1. Blank lines are left out; results as JSON say the `line` that they are of.
    """
    with ExitStack() as stack:
        batches = _batches(stack, inputs, input_file, jsonl=jsonl, pair=pair)
        sink = stack.enter_context(_open_output(output, input_file)) if output is not None else None
        printer = _Printer(
            "input" if inputs else "line", numbered=not inputs or len(inputs) > 1, as_json=as_json, sink=sink
        )
        params = ({"truncate": True} if truncate else {}) | parse_params(param)
        client = stack.enter_context(open_client(url, api_key))
        for batch in batches:
            good = [line.value for line in batch if line.error is None]
            results = (
                client.map(vfm, good, window=256, timeout=timeout, on_error="return", **params) if good else iter(())
            )
            for line in batch:
                printer.take(line, line.error or next(results))
    if not printer.taken:
        raise InvalidInput("no inputs: give texts as arguments, or lines on standard input", field="inputs")
    if output is not None and not as_json:
        out.print(f"{printer.taken - printer.failed} results in {output}", markup=False, soft_wrap=True)
    if printer.failed:
        raise typer.Exit(1)


def _batches(
    stack: ExitStack, inputs: list[str] | None, path: Path | None, *, jsonl: bool, pair: str | None
) -> Iterator[list[Line]]:
    """Return the inputs in batches, from the arguments or a file that `stack` closes. Raises `InvalidInput`."""
    if jsonl and (inputs or pair is not None):
        what = "texts are given as arguments" if inputs else "--pair is for texts: write text_pair into the lines"
        raise InvalidInput(f"--jsonl is for lines of JSON; {what}", field="inputs")
    if inputs and path is not None:
        raise InvalidInput("texts are given as arguments and in a file; leave one out", field="inputs")
    value: Callable[[str], Any] = (
        (lambda text: text) if pair is None else lambda text: {"text": text, "text_pair": pair}
    )
    if inputs:
        return iter([[Line(number, value(text)) for number, text in enumerate(inputs, 1)]])
    file = open_lines(path)
    if path is not None and str(path) != "-":
        stack.enter_context(file)
    return as_they_come(read_lines(file, _from_json if jsonl else value), _AT_ONCE)


def _from_json(text: str) -> Any:
    """Read one line of JSON. Raises `ValueError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"not JSON ({e})") from None
    if not isinstance(value, str | dict):
        raise ValueError(f"neither a JSON string nor an object, but {text[:20]}")
    return value


def _open_output(path: Path, source: Path | None) -> TextIO:
    """Open a file for results. Raises `InvalidInput`."""
    try:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise InvalidInput(f"{path} is what is read; give another -o FILE", field="out")
        return path.open("w", encoding="utf-8")
    except OSError as e:
        raise InvalidInput(f"{path} cannot be written ({e.strerror}); give another -o FILE", field="out") from e


class _Printer:
    """Prints what came of inputs, or writes it to `sink`, and counts it. `what` an input is called, `numbered` or not."""

    def __init__(self, what: str, *, numbered: bool, as_json: bool, sink: TextIO | None) -> None:
        self.taken = self.failed = 0
        self._what, self._numbered, self._as_json, self._sink = what, numbered, as_json, sink

    def take(self, line: Line, outcome: Result | FmplexError) -> None:
        """Print one outcome. Raises it if the fleet is away, so that the next ones would fail like it."""
        if isinstance(outcome, Unavailable):
            raise outcome
        self.taken += 1
        if isinstance(outcome, FmplexError):
            self.failed += 1
            place = f"{self._what} {line.number}: " if self._numbered else ""
            message = f"{place}{outcome.code}: {outcome.message}"
            err.print(message, markup=False, highlight=False, soft_wrap=True, style="red")
        if self._sink is not None or self._as_json:
            self._write(line, outcome)
        elif isinstance(outcome, Result):
            show.print_output(line.value, outcome.output)

    def _write(self, line: Line, outcome: Result | FmplexError) -> None:
        where = {"line": line.number} if self._what == "line" else {}
        if isinstance(outcome, Result):
            print_json(where | {f.name: getattr(outcome, f.name) for f in fields(outcome)}, self._sink)
        else:
            print_json(where | {"error": {"code": outcome.code, "message": outcome.message}}, self._sink)
