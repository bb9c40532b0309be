"""`python -m fmplex_worker.tuning.decoder`: `TextSpec` lines on standard input, `TextEvent` lines on standard output."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import TypeAdapter

from fmplex_broker.specs.fitting import FitDone
from fmplex_broker.specs.fitting_text import DecoderSpec, TextEvent, TextSpec
from fmplex_worker.tuning.decoder.adapting import train_lora
from fmplex_worker.tuning.decoder.pretraining import train_decoder
from fmplex_worker.tuning.process import run

SPECS: TypeAdapter[TextSpec] = TypeAdapter(TextSpec)


def train(spec: TextSpec, on_event: Callable[[TextEvent], None]) -> FitDone:
    """Train a decoder or a LoRA, whichever the spec asks for."""
    return train_decoder(spec, on_event) if isinstance(spec, DecoderSpec) else train_lora(spec, on_event)


if __name__ == "__main__":
    raise SystemExit(run(SPECS, train))
