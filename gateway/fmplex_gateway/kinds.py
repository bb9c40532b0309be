"""The kinds of vFMs, and the endpoints that serve them."""

from __future__ import annotations

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.vfm import VfmSpec

_ENDPOINTS = {"embedding": "/v1/embeddings", "generation": "/v1/chat/completions or /v1/completions"}


def require_kind(vfm: VfmSpec, kind: str) -> None:
    """Check that a vFM has a single head of a kind. Raises `InvalidInput`, which says what to call instead."""
    have = vfm.head.kind if vfm.head is not None else None
    if have != kind:
        instead = _ENDPOINTS.get(have or "", f"/v1/vfms/{vfm.name}/infer")
        what = f"a vFM of kind {have}" if have else "a vFM with several heads"
        raise InvalidInput(f"{vfm.name!r} is {what}; call {instead}", field="model")
