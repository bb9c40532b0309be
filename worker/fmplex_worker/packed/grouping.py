"""The number of adapters in a pass from which the grouped matmul beats one pair of matmuls per adapter on this device."""

from __future__ import annotations

import time

import torch

from fmplex_worker.packed.segments import Adapter, Factors, Segments

_ADAPTERS = (2, 4, 8, 16, 32)
_RANK, _ROWS = 16, 16  # a usual rank, and tokens per adapter


def group_from(device: torch.device, dtype: torch.dtype, width: int) -> int | None:
    """Measure the smallest number of adapters from which grouping wins; None when it never does, or cannot run.

    On CPU it is not measured again: in `benchmarks/adapters.py` and in layer tests (fp32, 8-64 adapters) segments won
    every time, 1.05-1.08 against 1.07-1.10 of the plain linear at 32 adapters of 16 tokens.
    """
    if device.type == "cpu" or not hasattr(torch.nn.functional, "grouped_mm"):
        return None
    wins = None
    for adapters in reversed(_ADAPTERS):
        try:
            grouped = _seconds(adapters, device, dtype, width, 1)
        except RuntimeError:  # this device or dtype has no grouped kernel
            return None
        if grouped >= _seconds(adapters, device, dtype, width, None):
            break
        wins = adapters
    return wins


@torch.inference_mode()
def _seconds(count: int, device: torch.device, dtype: torch.dtype, width: int, grouping: int | None) -> float:
    """Measure one linear's updates: seconds of the best of a few rounds."""
    down = torch.zeros(_RANK, width, dtype=dtype, device=device).t()
    up = torch.zeros(_RANK, width, dtype=dtype, device=device)
    adapters = [Adapter(i + 1, (Factors(down, up),)) for i in range(count)]
    rows = count * _ROWS
    segments = Segments.of(adapters, [_ROWS] * count, rows, device, grouping)
    x = torch.zeros(1, rows, width, dtype=dtype, device=device)
    y = torch.zeros_like(x)
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        segments.add(0, x, y)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return best
