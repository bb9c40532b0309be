"""Placing tensors of host memory on the device: views of one storage go over together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Place = Callable[[Tensor], Tensor]


def place_on(device: torch.device) -> Place:
    """Return a function that moves the tensors of one version: layers of an adapter share storages, and each is copied once."""
    moved: dict[int, Tensor] = {}  # storage -> its copy, flat

    def place(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in moved:
            flat = torch.empty(0, dtype=tensor.dtype).set_(storage)
            moved[storage.data_ptr()] = flat.to(device)
        return moved[storage.data_ptr()].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    return place
