"""Reading the tensors of a package: safetensors only, whole into memory, checked before anything uses them."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fmplex_broker.errors import PackageRejected


def read_tensors(data: bytes, name: str, field: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises `PackageRejected` when it is not whole."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as e:
        raise PackageRejected(f"{name} is not a whole safetensors file ({e}); save it again", field=field) from e
    return tensors


def placed(tensor: Tensor, name: str, dtype: torch.dtype, device: torch.device, field: str) -> Tensor:
    """The tensor in the dtype and place it will be used in. Raises `PackageRejected` when NaN or infinite there."""
    cast = tensor.to(dtype)
    if not torch.isfinite(cast).all():
        raise PackageRejected(f"{name} holds NaN or infinite values (as {dtype}); train or save it again", field=field)
    return cast.contiguous().to(device)


def shapes(tensors: Mapping[str, Tensor]) -> str:
    """`name (shape)` of each, for messages."""
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
