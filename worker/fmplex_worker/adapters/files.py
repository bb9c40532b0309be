"""Reading the tensors of a package: safetensors only, whole into memory, checked before anything uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fmplex_broker.errors import PackageRejected


def read_tensors(data: bytes, name: str, field: str) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file. Raises `PackageRejected` when it is not whole."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as e:
        raise PackageRejected(f"{name} is not a whole safetensors file ({e}); save it again", field=field) from e
    return tensors


def fitted(tensor: Tensor, name: str, dtype: torch.dtype, field: str) -> Tensor:
    """Convert a tensor to the dtype it will be used in. Raises `PackageRejected` when NaN or infinite there."""
    return fitted_together(tensor.unsqueeze(0), [name], dtype, field)[0]


def fitted_together(stack: Tensor, names: Sequence[str], dtype: torch.dtype, field: str) -> Tensor:
    """Convert tensors of one shape as `fitted` does, `stack[i]` the one called `names[i]`: few calls, however many there are."""
    cast = stack.to(dtype)
    finite = torch.isfinite(cast)
    if not finite.all():
        name = next(name for name, good in zip(names, finite, strict=True) if not good.all())
        raise PackageRejected(f"{name} holds NaN or infinite values (as {dtype}); train or save it again", field=field)
    return cast.contiguous()


def shapes(tensors: Mapping[str, Tensor]) -> str:
    """List `name (shape)` of each tensor, for messages."""
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
