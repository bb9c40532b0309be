"""One call of a vFM, as every transport takes it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmplex_broker.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a vFM.

    `inputs`: one job each. `params`: parameters of the vFM's head. `timeout_ms`: until the deadline, None: as long as the vFM's
    SLO says. `idempotency_key`: a call that is repeated with the same key does not run twice. `offline`: from spare capacity.
    """

    vfm: str
    inputs: tuple[Any, ...]
    params: Mapping[str, Any]
    timeout_ms: float | None
    idempotency_key: str
    offline: bool = False


def make_call(
    vfm: str,
    inputs: Sequence[Any],
    params: Mapping[str, Any],
    timeout: float | None,
    idempotency_key: str | None = None,
    *,
    offline: bool = False,
) -> Call:
    """Make a call from what a user gave: `timeout` in seconds; a random idempotency key if there is none."""
    timeout_ms = None if timeout is None else timeout * 1000
    return Call(vfm, tuple(inputs), params, timeout_ms, idempotency_key or secrets.token_hex(12), offline)


def embed_call(vfm: str, texts: Sequence[str], params: Mapping[str, Any], timeout: float | None) -> Call:
    """Make a call that embeds texts; `timeout` in seconds. Raises `InvalidInput` for a single text."""
    if isinstance(texts, str):
        raise InvalidInput("embed takes a list of texts", field="texts")
    return make_call(vfm, texts, params, timeout)
