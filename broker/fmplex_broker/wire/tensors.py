"""Tensors on the wire: dtype + shape + bytes, and nothing else (never pickle).

The light client has no numpy, so a `Tensor` is a small value of its own; roles that have numpy build an array over its
bytes without a copy.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# dtype name -> (bytes per element, struct code)
DTYPES: dict[str, tuple[int, str]] = {
    "float32": (4, "f"),
    "float64": (8, "d"),
    "int64": (8, "q"),
    "int32": (4, "i"),
}

MAX_DIMENSIONS = 8
_SHOWN = 4  # elements, in what `repr` gives


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense little-endian row-major tensor: `dtype` (float32, float64, int32 or int64), `shape`, and its bytes, `data`. numpy
    takes it as an array: `np.asarray(tensor)`.

    Raises `ValueError` when dtype is unknown, there are more than 8 dimensions or a negative one, or the number of bytes does not
    fit the shape.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if len(self.shape) > MAX_DIMENSIONS:  # the product of very many takes for ever
            raise ValueError(f"a tensor has at most {MAX_DIMENSIONS} dimensions, not {len(self.shape)}")
        if any(type(n) is not int or n < 0 for n in self.shape):
            raise ValueError(f"shape {self.shape} must hold whole numbers >= 0")
        want = math.prod(self.shape) * DTYPES[self.dtype][0]
        if not isinstance(self.data, bytes):
            raise ValueError(f"the data of a tensor must be bytes, not {type(self.data).__name__}")
        if len(self.data) != want:
            raise ValueError(f"{self.dtype} tensor of shape {self.shape} needs {want} bytes, got {len(self.data)}")

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor without dimensions has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist()[: len(self)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        array = self.numpy()
        if copy is False and dtype is not None and array.dtype != np.dtype(dtype):
            raise ValueError(f"a {self.dtype} tensor is not {np.dtype(dtype)} without a copy")
        return array.astype(dtype or array.dtype, copy=bool(copy))

    def __repr__(self) -> str:
        size, code = DTYPES[self.dtype]
        shown = struct.unpack_from(f"<{min(_SHOWN, len(self.data) // size)}{code}", self.data)
        values = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in shown)
        more = ", …" if len(self.data) // size > _SHOWN else ""
        return f"Tensor({self.dtype}, {self.shape}, [{values}{more}])"

    def tolist(self) -> Any:
        """Return nested Python lists (a bare number for a zero-dimensional tensor)."""
        count = math.prod(self.shape)
        return _nest(list(struct.unpack(f"<{count}{DTYPES[self.dtype][1]}", self.data)), self.shape)

    def numpy(self) -> Any:
        """Return a read-only numpy view over the same bytes; needs numpy installed."""
        import numpy as np

        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)

    @classmethod
    def of(cls, array: Any) -> Tensor:
        """Make a tensor of a numpy `array` (or what numpy can view); copies only if it is not contiguous."""
        import numpy as np

        a = np.ascontiguousarray(array)
        return cls(str(a.dtype), tuple(int(n) for n in np.shape(array)), a.tobytes())


def _nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    step = math.prod(shape[1:])
    return [_nest(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]
