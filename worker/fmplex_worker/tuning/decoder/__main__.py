"""`python -m fmplex_worker.tuning.decoder`: `TextSpec` lines on standard input, `TextEvent` lines on standard output.

Specs are trained one after the other as they arrive; a failed one ends in `failed` and the next goes on. Nothing but events
ever reaches standard output. Exit code 0 if all were done, 1 if any failed.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable

from pydantic import TypeAdapter, ValidationError

from fmplex_broker.errors import FmplexError
from fmplex_broker.fitting import FitFailed
from fmplex_broker.fitting_text import DecoderSpec, TextEvent, TextSpec
from fmplex_broker.schema import invalid

log = logging.getLogger("fmplex_worker.tuning.decoder")
_SPEC: TypeAdapter[TextSpec] = TypeAdapter(TextSpec)


def serve(lines: Iterable[bytes], on_event: Callable[[TextEvent], None]) -> bool:
    """Train every spec of `lines`; whether all were done."""
    from fmplex_worker.tuning.decoder.adapting import (
        train_lora,
    )  # seconds of imports: standard output must be safe before
    from fmplex_worker.tuning.decoder.pretraining import train_decoder

    good = True
    for number, line in enumerate(lines, 1):
        name = f"line {number}"
        try:
            spec = _spec(line)
            name = spec.name
            if isinstance(spec, DecoderSpec):
                train_decoder(spec, on_event)
            else:
                train_lora(spec, on_event)
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


def _spec(line: bytes) -> TextSpec:
    try:
        return _SPEC.validate_json(line)
    except ValidationError as e:
        raise invalid(e, "fit") from None


def main() -> int:
    # Whatever a library prints, in Python or in C, must go to standard error: keep the real output to ourselves.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # PEFT asks transformers by an old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()

    def write(event: TextEvent) -> None:
        events.write(event.model_dump_json() + "\n")
        events.flush()

    try:
        return 0 if serve(sys.stdin.buffer, write) else 1
    except BrokenPipeError:  # nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), events.fileno())  # or closing would complain
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
