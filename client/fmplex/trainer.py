"""A training process of the worker's package: it takes specs as lines on its input and answers events as lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Generic, TypeVar

from pydantic import BaseModel, TypeAdapter

from fmplex_broker.errors import FmplexError, JobFailed, Unavailable, from_wire
from fmplex_broker.specs.fitting import FitFailed

E = TypeVar("E")


class Trainer(Generic[E]):
    """One process that trains `specs` in turn. `module`: what it runs; `events`: how its lines are read; `extra`: the part of
    fmplex to install if there is no trainer; `own_session`: Ctrl-C does not reach it, so that only `stop` ends it.

    Raises `Unavailable` where the worker's packages are not installed.
    """

    def __init__(
        self,
        module: str,
        specs: Sequence[BaseModel],
        events: TypeAdapter[E],
        *,
        extra: str = "worker",
        own_session: bool = False,
    ) -> None:
        if find_spec("fmplex_worker") is None or find_spec("torch") is None:
            raise Unavailable(f"training needs the worker's packages: pip install 'fmplex[{extra}]'")
        self._input = "".join(spec.model_dump_json() + "\n" for spec in specs)
        self._parser = events
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=own_session,
        )  # fmt: skip

    def events(self) -> Iterator[E]:
        """Yield events as they come. Raises `JobFailed` if the process dies."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin:
            process.stdin.write(self._input)
        with process.stdout:
            for line in process.stdout:
                yield self._parser.validate_json(line)
        if process.wait() not in (0, 1):  # 1: some spec failed, which its event has said
            raise JobFailed(f"the trainer died with exit code {process.returncode}; see its messages above")

    def stop(self) -> None:
        """Kill the process, if it has not ended, and wait for its end."""
        self._process.kill()
        self._process.wait()


def fit_error(event: FitFailed) -> FmplexError:
    """Return the typed error of a training that failed."""
    return from_wire({"code": event.code, "message": event.message, "field": event.field})
