"""A process that trains: specs, a line each, on standard input; events, a line each, on standard output, and nothing else there.

Specs are trained one after the other as they arrive; a failed one ends in `failed` and the next goes on.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from fmplex_broker.errors import FmplexError, InvalidInput
from fmplex_broker.specs.fitting import FitFailed
from fmplex_broker.specs.schema import invalid

log = logging.getLogger(__name__)
S = TypeVar("S")
OnEvent = Callable[[BaseModel], None]
Train = Callable[[S, OnEvent], object]


def serve(lines: Iterable[bytes], specs: TypeAdapter[S], train: Train[S], on_event: OnEvent) -> bool:
    """Train every spec of `lines`. Returns whether all were done."""
    good = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = f"line {number}"
        try:
            name = _name(line, name)
            train(_spec(line, specs), on_event)
        except BrokenPipeError:
            raise
        except FmplexError as e:
            good = False
            on_event(FitFailed(name=name, code=e.code, message=e.message, field=e.field))
        except Exception as e:  # one spec must not end the others
            good = False
            log.exception("training %s failed", name)
            on_event(FitFailed(name=name, code=FmplexError.code, message=f"{type(e).__name__}: {e}"))
    return good


def _spec(line: bytes, specs: TypeAdapter[S]) -> S:
    try:
        return specs.validate_json(line)
    except ValidationError as e:
        raise invalid(e, "fit") from None
    except ValueError as e:  # not UTF-8
        raise InvalidInput(f"not a line of JSON: {e}") from None


def _name(line: bytes, otherwise: str) -> str:
    """Return the name of a spec that may be wrong in any other way."""
    try:
        value = from_json(line)
    except ValueError:
        return otherwise
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else otherwise


def run(specs: TypeAdapter[S], train: Train[S]) -> int:
    """Serve this process's standard input. Returns the exit code: 0 if all were done, 1 if any failed."""
    # Whatever a library prints, in Python or in C, must go to standard error: keep the real output to ourselves.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # its report of weights that are not used, such as the pooler's

    def write(event: BaseModel) -> None:
        events.write(event.model_dump_json() + "\n")
        events.flush()

    try:
        return 0 if serve(sys.stdin.buffer, specs, train, write) else 1
    except BrokenPipeError:  # nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), events.fileno())  # or closing would complain
        return 1
