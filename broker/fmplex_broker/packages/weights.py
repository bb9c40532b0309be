"""Contents of a safetensors file without loading it: names and shapes from its header (the format's own documentation).

The header is others' work, and whoever checks it has other things to do: everything about it is bounded before it is looked
at, and what passes here is whole for every reader of the format.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.json_object import read_object
from fmplex_broker.specs.heads import Head, head_tensors

# An adapter on every linear layer of 126 blocks has 1,764 tensors, and 250 kB of header.
MAX_HEADER_BYTES = 2_097_152
MAX_TENSORS = 8192
_MAX_DIMENSIONS = 8
_LONGEST_NAME = 256
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_ENTRY = {"dtype", "shape", "data_offsets"}
_SHOWN = 8  # tensors in an error

Shape = tuple[int, ...]


def tensor_shapes(data: bytes | memoryview, name: str, field: str) -> dict[str, Shape]:
    """Read tensor name → shape. Raises `PackageRejected` when it is no whole safetensors file of floating point tensors, or has
    more of them, or a longer header, than anything that is served."""
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError("its header is cut off")
        if length > MAX_HEADER_BYTES:
            raise _too_much(f"{name} has a header of {length} bytes, at most {MAX_HEADER_BYTES} are taken", field)
        header = read_object(bytes(data[8 : 8 + length]), MAX_HEADER_BYTES)
        _check_metadata(header.pop("__metadata__", {}))
        if len(header) > MAX_TENSORS:
            raise _too_much(f"{name} holds {len(header)} tensors, at most {MAX_TENSORS} are taken", field)
        shapes: dict[str, Shape] = {}
        spans = []
        for key, entry in header.items():
            _check_entry(key, entry)
            if str(entry["dtype"]) not in _BYTES:
                raise PackageRejected(f"{name}: {key} is {str(entry['dtype'])[:16]}; save it as float32", field=field)
            shapes[key] = _shape_of(key, entry["shape"])
            spans.append(_span(key, entry, shapes[key]))
        _check_spans(spans, len(data) - 8 - length)
    except ValueError as e:
        raise PackageRejected(f"{name} is not a whole safetensors file ({e}); save it again", field=field) from e
    return shapes


def _too_much(what: str, field: str) -> PackageRejected:
    return PackageRejected(f"{what}; save fewer tensors, under the names that their modules have", field=field)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its __metadata__ is not texts by name")


def _check_entry(key: str, entry: Any) -> None:
    """Check that a tensor's name is one that modules have, and that it is described as the format says. Raises `ValueError`."""
    if not 1 <= len(key) <= _LONGEST_NAME or not key.isascii() or not key.isprintable():
        raise ValueError(f"the name {key[:64]!r} is not 1 to {_LONGEST_NAME} printable ASCII characters")
    if not isinstance(entry, dict) or entry.keys() != _ENTRY:
        raise ValueError(f"{key} is not described by dtype, shape and data_offsets")


def _shape_of(key: str, shape: Any) -> Shape:
    """Return a shape that is one. Raises `ValueError`."""
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or any(not _is_count(n) for n in shape):
        raise ValueError(f"the shape of {key} is not at most {_MAX_DIMENSIONS} whole numbers")
    return tuple(shape)


def _span(key: str, entry: Mapping[str, Any], shape: Shape) -> tuple[int, int]:
    """Return where a tensor's bytes begin and end. Raises `ValueError` if those are not as many as its shape says."""
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or any(not _is_count(n) for n in offsets):
        raise ValueError(f"the data_offsets of {key} are not two whole numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * _BYTES[entry["dtype"]]:
        raise ValueError(f"the shape of {key} is {shape}, and its bytes are {end - begin}")
    return begin, end


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**48


def _check_spans(spans: Iterable[tuple[int, int]], size: int) -> None:
    """Check that tensors lie side by side in `size` bytes, with none left over. Raises `ValueError`."""
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ValueError("its tensors do not lie side by side")
        at = end
    if at != size:
        raise ValueError("its data is cut off, or goes on after its end")


def check_head(heads: Mapping[str, Head], data: bytes | memoryview, hidden: int = 0) -> None:
    """Check that `head.safetensors` is what these heads need on hidden states of width `hidden` (0: any; the backbone knows).

    Several heads: each tensor's name begins with its head's (`topic.weight`). Raises `PackageRejected`.
    """
    found = tensor_shapes(data, "head.safetensors", "head")
    wanted: dict[str, Shape] = {}
    for name, head in heads.items():
        stem = f"{name}." if name else ""
        first = found.get(stem + next(iter(head_tensors(head, 0)), ""), ())
        width = hidden or (first[1] if len(first) == 2 else 0)
        own = {stem + key: shape for key, shape in head_tensors(head, width).items()}
        if twice := sorted(own.keys() & wanted.keys()):
            raise PackageRejected(f"two heads both call a tensor {twice[0]!r}; rename one of them", field="heads")
        wanted |= own
    missing = [key for key in wanted if key not in found and not key.endswith("bias")]
    wrong = [key for key, shape in found.items() if wanted.get(key) != shape]
    if at_fault := {*missing, *wrong}:
        need = _listed({key: _shape(shape) for key, shape in wanted.items()}, at_fault)
        have = _listed({key: str(shape) for key, shape in found.items()}, at_fault)
        raise PackageRejected(f"head.safetensors holds {have}; needed: {need} (biases may be left out)", field="head")


def _listed(shapes: Mapping[str, str], first: Collection[str]) -> str:
    """List tensors for an error; if there are many, not all, and those `first` that are at fault."""
    names = list(shapes)
    if len(names) > _SHOWN:
        names.sort(key=lambda name: name not in first)
    shown = ", ".join(f"{name} {shapes[name]}" for name in names[:_SHOWN]) or "nothing"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _shape(shape: Shape) -> str:
    sizes = ", ".join(str(n) if n else "hidden size" for n in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"
