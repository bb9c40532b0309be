"""Settings of a training that hold for the whole process while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def settings(seed: int, threads: int | None) -> Iterator[None]:
    """Set seed and thread count for a training; the caller's come back afterwards."""
    before = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**63)
        torch.set_num_threads(threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)
