"""Compare what vFMs answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fmplex_broker.wire.tensors import Tensor


def difference(got: Any, wanted: Any) -> float:
    """Return the largest difference of two outputs, as a share of the largest value (of a score: of one).

    Infinite when they are not alike.
    """
    ours, theirs = list(_leaves(got)), list(_leaves(wanted))
    if len(ours) != len(theirs):
        return math.inf
    largest, scale = 0.0, 1.0 if len(theirs) < 100 else 0.0
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, float) and isinstance(b, float):
            largest, scale = max(largest, abs(a - b) if math.isfinite(a) else math.inf), max(scale, abs(b))
        elif a != b:
            return math.inf
    return largest / scale if largest else 0.0


def _leaves(output: Any) -> Iterator[Any]:
    """Yield every value of an output and every key, in a fixed order."""
    if isinstance(output, Tensor):
        output = output.tolist()
    if isinstance(output, dict):
        for key in sorted(output):
            yield key
            yield from _leaves(output[key])
    elif isinstance(output, list):
        for value in output:
            yield from _leaves(value)
    else:
        yield output
