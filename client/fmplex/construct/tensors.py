"""Reading and writing the safetensors format: the light client has neither safetensors nor numpy.

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

_DTYPES = {"float32": "F32", "float64": "F64"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_ALIGN = 8  # of the data, as the format asks


class StoredTensor(NamedTuple):
    """A tensor as a safetensors file holds it: `data` is little-endian, row by row."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read(buffer: bytes | mmap.mmap) -> dict[str, StoredTensor]:
    """Read all tensors of a file that `fmplex_broker.packages.weights.tensor_shapes` has found whole."""
    start = 8 + int.from_bytes(buffer[:8], "little")
    header = json.loads(buffer[8:start])
    header.pop("__metadata__", None)
    return {name: _stored(buffer, start, entry) for name, entry in header.items()}


def find(path: Path, names: Sequence[str]) -> StoredTensor | None:
    """Read the first of `names` that a file has, None if it has none, without reading the rest: a model's file is large."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        start = 8 + int.from_bytes(buffer[:8], "little")
        header = json.loads(buffer[8:start])
        return next((_stored(buffer, start, header[name]) for name in names if name in header), None)


def _stored(buffer: bytes | mmap.mmap, start: int, entry: dict[str, Any]) -> StoredTensor:
    first, last = entry["data_offsets"]
    if last - first != math.prod(entry["shape"]) * _BYTES[entry["dtype"]]:
        raise PackageRejected(
            "a tensor's shape and its bytes in the safetensors file differ; save it again", field="package"
        )
    return StoredTensor(entry["dtype"], tuple(entry["shape"]), buffer[start + first : start + last])


def write(tensors: Mapping[str, StoredTensor]) -> bytes:
    """Write tensors as one file's bytes; the same tensors always give the same bytes."""
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in sorted(tensors.items()):
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (at, at + len(tensor.data))}
        at += len(tensor.data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    return b"".join([len(text).to_bytes(8, "little"), text, *(tensor.data for _, tensor in sorted(tensors.items()))])


def as_float32(value: Any, name: str) -> StoredTensor:
    """Convert numbers in any common form (numpy, torch, `fmplex.Tensor`, nested lists) to float32; what is stored already stays.

    Raises `InvalidInput`, with `name` as its field, for what is no array of finite numbers.
    """
    if isinstance(value, StoredTensor):
        return value
    if isinstance(value, Tensor) and value.dtype in _DTYPES:
        return StoredTensor(_DTYPES[value.dtype], value.shape, value.data)
    if hasattr(value, "detach"):  # torch: numpy does not know all of its dtypes
        value = value.detach().cpu().float()
    try:
        if hasattr(value, "__array__"):
            np = need_numpy()
            array = np.ascontiguousarray(value, dtype="<f4")
            finite = bool(np.isfinite(array).all())
            tensor = StoredTensor("F32", tuple(np.shape(value)), array.tobytes())
        else:
            shape, flat = _flatten(value, name)
            finite = all(map(math.isfinite, flat))
            tensor = StoredTensor("F32", shape, struct.pack(f"<{len(flat)}f", *flat))
    except (struct.error, ValueError, TypeError, OverflowError) as e:
        raise InvalidInput(f"{name} is no array of float32 numbers ({e})", field=name) from e
    if not finite:
        raise InvalidInput(f"{name} holds NaN or infinite values; fit it again", field=name)
    return tensor


def _flatten(value: Any, name: str) -> tuple[tuple[int, ...], list[Any]]:
    """Return shape and numbers of nested lists. Raises `InvalidInput` if they are not rectangular."""
    if not isinstance(value, list | tuple):
        return (), [value]
    parts = [_flatten(item, name) for item in value]
    shapes = {shape for shape, _ in parts}
    if len(shapes) != 1:
        raise InvalidInput(f"{name} is not a rectangular array of numbers", field=name)
    return (len(parts), *shapes.pop()), [number for _, numbers in parts for number in numbers]


def as_numpy(tensor: StoredTensor) -> Any:
    """Convert to a float64 array. Raises `Unavailable` without numpy."""
    np = need_numpy()
    if tensor.dtype == "BF16":  # the upper half of a float32
        bits = np.frombuffer(tensor.data, dtype="<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(tensor.shape).astype("f8")
    return (
        np.frombuffer(tensor.data, dtype={"F16": "<f2", "F32": "<f4", "F64": "<f8"}[tensor.dtype])
        .reshape(tensor.shape)
        .astype("f8")
    )


def need_numpy() -> Any:
    """Import numpy, which the light client does not bring. Raises `Unavailable` if it is not installed."""
    try:
        import numpy
    except ImportError:
        raise Unavailable("this conversion computes with numpy: pip install numpy") from None
    return numpy
