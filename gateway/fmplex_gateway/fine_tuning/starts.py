"""What training begins with, and errors that name a field of the body."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fmplex_broker.errors import FmplexError
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.tuning import Base


@dataclass(frozen=True, slots=True)
class Start:
    """What training begins with: the `backbone` as it is, or a vFM on it as `vfm` shows it, of which it is `base`."""

    backbone: str
    vfm: VfmStatus | None = None
    base: Base | None = None


@asynccontextmanager
async def naming(field: str) -> AsyncGenerator[None, None]:
    """Let errors name a field of the body."""
    try:
        yield
    except FmplexError as e:
        e.field = field
        raise
