"""The choice of a matmul library on the CPU.

torch's own linear calls MKL, which on AMD processors runs at about half of oneDNN's speed (EPYC, one thread,
MiniLM's linears: 90-115 against 190-250 GFLOP/s). torch brings both along, so whichever is faster here is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_ROWS, _INNER, _OUTER = 128, 384, 1536  # small enough to take milliseconds, large enough to tell
_TRIES = 5
_STEP = 32  # rows
_BETTER = 1.1  # oneDNN must be this much faster: of two alike, torch's own


def linear_for(weight: Tensor) -> Linear:
    """Return the fastest linear for passes (no gradients) with this weight; may be torch's own."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return functional.linear
    return _fastest(torch.get_num_threads())


@cache
def _fastest(threads: int) -> Linear:
    """Measure the linears that this torch has, for as many threads; return the fastest."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return functional.linear
    with torch.inference_mode():
        x, weight, bias = torch.zeros(1, _ROWS, _INNER), torch.zeros(_OUTER, _INNER), torch.zeros(_OUTER)
        try:
            onednn = _seconds(_onednn, x, weight, bias)
        except RuntimeError:  # an operator of torch's compiler: not promised to stay as it is
            return functional.linear
        return _onednn if onednn * _BETTER < _seconds(functional.linear, x, weight, bias) else functional.linear


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a linear by oneDNN: x `[1, rows, in]` → `[1, rows, out]`.

    oneDNN compiles and keeps a kernel for every number of rows, about 0.4 MB each: in steps of `_STEP` there are few of them.
    """
    if x.ndim != 3:  # not the packed row
        return functional.linear(x, weight, bias)
    rows = x.shape[1]
    if more := -rows % _STEP:
        x = functional.pad(x, (0, 0, 0, more))
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y[:, :rows]


def _seconds(linear: Linear, x: Tensor, weight: Tensor, bias: Tensor) -> float:
    """Measure a linear: seconds of the fastest try, as whatever else the machine does only ever makes it slower."""
    took = []
    for _ in range(_TRIES + 1):
        begun = time.perf_counter()
        linear(x, weight, bias)
        took.append(time.perf_counter() - begun)
    return min(took[1:])
