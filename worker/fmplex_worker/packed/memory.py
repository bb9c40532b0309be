"""How a device says that its memory does not suffice."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Tell whether it is CUDA's own type, or on a CPU the RuntimeError of torch's DefaultCPUAllocator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
