"""`python -m fmplex_worker.tuning`: `FitSpec` lines on standard input, `FitEvent` lines on standard output."""

from __future__ import annotations

from pydantic import TypeAdapter

from fmplex_broker.specs.fitting import FitSpec
from fmplex_worker.tuning.process import run
from fmplex_worker.tuning.trainer import fit

if __name__ == "__main__":
    raise SystemExit(run(TypeAdapter(FitSpec), fit))
