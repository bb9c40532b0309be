"""The safetensors format, read and written here: the light client has neither safetensors nor numpy.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name → dtype, shape, data_offsets), the data.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmplex_broker.errors import InvalidInput, PackageRejected, Unavailable
from fmplex_broker.wire.tensors import Tensor

_WIRE = {"float32": "F32", "float64": "F64"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_ALIGN = 8  # of the data, as the format asks


class Raw(NamedTuple):
    """A tensor as a safetensors file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read(buffer: bytes | mmap.mmap) -> dict[str, Raw]:
    """All tensors of a file that `fmplex_broker.packages.weights.tensor_shapes` has found whole."""
    start = 8 + int.from_bytes(buffer[:8], "little")
    header = json.loads(buffer[8:start])
    header.pop("__metadata__", None)
    return {name: _raw(buffer, start, entry) for name, entry in header.items()}


def find(path: Path, names: Sequence[str]) -> Raw | None:
    """The first of `names` that a file has, without reading the rest of it; a model's file is large."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        start = 8 + int.from_bytes(buffer[:8], "little")
        header = json.loads(buffer[8:start])
        return next((_raw(buffer, start, header[name]) for name in names if name in header), None)


def _raw(buffer: bytes | mmap.mmap, start: int, entry: dict[str, Any]) -> Raw:
    first, last = entry["data_offsets"]
    if last - first != math.prod(entry["shape"]) * _BYTES[entry["dtype"]]:
        raise PackageRejected(
            "a tensor's shape and its bytes in the safetensors file differ; save it again", field="package"
        )
    return Raw(entry["dtype"], tuple(entry["shape"]), buffer[start + first : start + last])


def write(tensors: Mapping[str, Raw]) -> bytes:
    """One file of them; the same tensors always give the same bytes."""
    header: dict[str, Any] = {}
    at = 0
    for name, raw in sorted(tensors.items()):
        header[name] = {"dtype": raw.dtype, "shape": raw.shape, "data_offsets": (at, at + len(raw.data))}
        at += len(raw.data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    return b"".join([len(text).to_bytes(8, "little"), text, *(raw.data for _, raw in sorted(tensors.items()))])


def raw_of(value: Any, name: str) -> Raw:
    """Numbers in any common form (numpy, torch, `fmplex.Tensor`, nested lists) as float32. Raises `InvalidInput` that names
    what is no array of finite numbers."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, Tensor) and value.dtype in _WIRE:
        return Raw(_WIRE[value.dtype], value.shape, value.data)
    if hasattr(value, "detach"):  # torch: numpy does not know all of its dtypes
        value = value.detach().cpu().float()
    try:
        if hasattr(value, "__array__"):
            np = need_numpy()
            array = np.ascontiguousarray(value, dtype="<f4")
            finite, raw = bool(np.isfinite(array).all()), Raw("F32", tuple(np.shape(value)), array.tobytes())
        else:
            shape, flat = _flat(value, name)
            finite, raw = all(map(math.isfinite, flat)), Raw("F32", shape, struct.pack(f"<{len(flat)}f", *flat))
    except (struct.error, ValueError, TypeError, OverflowError) as e:
        raise InvalidInput(f"{name} is no array of float32 numbers ({e})", field=name) from e
    if not finite:
        raise InvalidInput(f"{name} holds NaN or infinite values; fit it again", field=name)
    return raw


def _flat(value: Any, name: str) -> tuple[tuple[int, ...], list[Any]]:
    if not isinstance(value, list | tuple):
        return (), [value]
    parts = [_flat(item, name) for item in value]
    shapes = {shape for shape, _ in parts}
    if len(shapes) != 1:
        raise InvalidInput(f"{name} is not a rectangular array of numbers", field=name)
    return (len(parts), *shapes.pop()), [number for _, numbers in parts for number in numbers]


def numpy_of(raw: Raw) -> Any:
    """As a float64 array; needs numpy."""
    np = need_numpy()
    if raw.dtype == "BF16":  # the upper half of a float32
        bits = np.frombuffer(raw.data, dtype="<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(raw.shape).astype("f8")
    return (
        np.frombuffer(raw.data, dtype={"F16": "<f2", "F32": "<f4", "F64": "<f8"}[raw.dtype])
        .reshape(raw.shape)
        .astype("f8")
    )


def need_numpy() -> Any:
    """numpy, which the light client does not bring. Raises `Unavailable`."""
    try:
        import numpy
    except ImportError:
        raise Unavailable("this conversion computes with numpy: pip install numpy") from None
    return numpy
