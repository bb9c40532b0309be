"""Settings of a training that hold for the whole process while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Set the thread count for a training (None: as it is); the caller's comes back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def settings(seed: int, number: int | None) -> Iterator[None]:
    """Set seed and thread count for a training; the caller's come back afterwards."""
    with torch.random.fork_rng(), threads(number):
        torch.manual_seed(seed % 2**63)
        yield
