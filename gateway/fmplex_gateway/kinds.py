"""Which endpoint serves which kind of vFM."""

from __future__ import annotations

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.vfm import VfmSpec

_ENDPOINTS = {"embedding": "/v1/embeddings", "generation": "/v1/chat/completions or /v1/completions"}


def require(vfm: VfmSpec, kind: str) -> None:
    """Raises `InvalidInput`, saying what to call instead, unless the vFM has a single head of that kind."""
    have = vfm.head.kind if vfm.head is not None else None
    if have != kind:
        instead = _ENDPOINTS.get(have or "", f"/v1/vfms/{vfm.name}/infer")
        what = f"a vFM of kind {have}" if have else "a vFM with several heads"
        raise InvalidInput(f"{vfm.name!r} is {what}; call {instead}", field="model")
