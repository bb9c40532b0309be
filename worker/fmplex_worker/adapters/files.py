"""Reading the tensors of a package: safetensors only, whole into memory, checked before anything uses them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fmplex_broker.errors import PackageRejected


def read_tensors(path: Path, field: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, as CPU copies (a mapped file would crash us if it shrank later).

    Raises `PackageRejected` when the file cannot be read, is not whole, or holds something else than floating point.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(path.read_bytes())
    except OSError as e:
        raise PackageRejected(f"{path} cannot be read ({e.strerror})", field=field) from e
    except (SafetensorError, ValueError, KeyError, RuntimeError) as e:
        raise PackageRejected(f"{path.name} is not a whole safetensors file ({e}); save it again", field=field) from e
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise PackageRejected(f"{path.name}: {name} is {tensor.dtype}; save it as float32", field=field)
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
