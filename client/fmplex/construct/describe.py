"""What `fmplex inspect` tells of a package; plain values."""

from __future__ import annotations

from typing import Any

from fmplex.construct import tensors
from fmplex_broker.packages import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Package
from fmplex_broker.peft import LORA_TENSOR, read_config


def describe(package: Package) -> dict[str, Any]:
    """Name, version, spec, files, tensors, and rank and targets of the adapter."""
    return {
        "name": package.spec.name,
        "version": package.digest,
        "bytes": package.nbytes,
        "spec": package.spec.model_dump(mode="json"),
        "files": {name: len(data) for name, data in package.files.items()},
        "tensors": {
            name: {key: {"dtype": raw.dtype, "shape": list(raw.shape)} for key, raw in tensors.read(data).items()}
            for name, data in package.files.items()
            if name.endswith(".safetensors")
        },
        "adapter": _adapter(package) if ADAPTER_CONFIG in package.files else None,
    }


def _adapter(package: Package) -> dict[str, Any]:
    config = read_config(package.files[ADAPTER_CONFIG])
    matches = (LORA_TENSOR.fullmatch(key) for key in tensors.read(package.files[ADAPTER_WEIGHTS]))
    modules = sorted({match["module"] for match in matches if match})
    return {
        "ranks": sorted({config.rank(module) for module in modules}),
        "scalings": sorted({config.scaling(module) for module in modules}),
        "targets": sorted({module.rpartition(".")[2] for module in modules}),
        "modules": len(modules),
    }
