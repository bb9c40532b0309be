"""Random numbers that depend on what they are for, not on what was drawn before: so that a training can be cut anywhere."""

from __future__ import annotations

import torch

from fmplex_worker.tuning.learnt import stable_seed


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Make the generator of a purpose, such as ("order", 3): always the same for the same seed."""
    return torch.Generator().manual_seed(stable_seed(seed, *purpose))
