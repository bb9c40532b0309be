"""Contents of a safetensors file without loading it: names and shapes from its header (the format's own documentation)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fmplex_broker.errors import PackageRejected
from fmplex_broker.specs.heads import Head, head_tensors

_LONGEST_HEADER = 100_000_000  # the format's own limit
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def tensor_shapes(data: bytes | memoryview, name: str, field: str) -> dict[str, tuple[int, ...]]:
    """Read tensor name → shape. Raises `PackageRejected` when it is no whole safetensors file of floating point tensors."""
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > min(len(data) - 8, _LONGEST_HEADER):
            raise ValueError("its header is cut off")
        header: dict[str, Any] = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        shapes = {key: tuple(int(n) for n in entry["shape"]) for key, entry in header.items()}
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
        kinds = {key: str(entry["dtype"]) for key, entry in header.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as e:
        raise PackageRejected(f"{name} is not a whole safetensors file ({e}); save it again", field=field) from e
    if 8 + length + max(ends, default=0) != len(data):
        raise PackageRejected(
            f"{name} is not a whole safetensors file (its data is cut off); save it again", field=field
        )
    for key, kind in kinds.items():
        if kind not in _FLOATS:
            raise PackageRejected(f"{name}: {key} is {kind}; save it as float32", field=field)
    return shapes


def check_head(heads: Mapping[str, Head], data: bytes | memoryview, hidden: int = 0) -> None:
    """Check that `head.safetensors` is what these heads need on hidden states of width `hidden` (0: any; the backbone knows).

    Several heads: each tensor's name begins with its head's (`topic.weight`). Raises `PackageRejected`.
    """
    found = tensor_shapes(data, "head.safetensors", "head")
    wanted: dict[str, tuple[int, ...]] = {}
    for name, head in heads.items():
        stem = f"{name}." if name else ""
        first = found.get(f"{stem}hidden.0.weight" if getattr(head, "hidden", ()) else f"{stem}weight", ())
        width = hidden or (first[1] if len(first) == 2 else 0)
        own = {stem + key: shape for key, shape in head_tensors(head, width).items()}
        if twice := sorted(own.keys() & wanted.keys()):
            raise PackageRejected(f"two heads both call a tensor {twice[0]!r}; rename one of them", field="heads")
        wanted |= own
    missing = [key for key in wanted if key not in found and not key.endswith("bias")]
    wrong = [key for key, shape in found.items() if wanted.get(key) != shape]
    if missing or wrong:
        need = ", ".join(f"{key} {_shape(shape)}" for key, shape in wanted.items())
        have = ", ".join(f"{key} {shape}" for key, shape in found.items()) or "nothing"
        raise PackageRejected(f"head.safetensors holds {have}; needed: {need} (biases may be left out)", field="head")


def _shape(shape: tuple[int, ...]) -> str:
    sizes = ", ".join(str(n) if n else "hidden size" for n in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"
