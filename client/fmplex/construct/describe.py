"""The description of a package that `fmplex inspect` prints, as plain values."""

from __future__ import annotations

from typing import Any

from fmplex.construct import tensors
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Package
from fmplex_broker.packages.peft import read_config, read_options
from fmplex_broker.packages.peft_ia3 import IA3_TENSOR
from fmplex_broker.packages.peft_lora import EMBEDDING_TENSOR, LORA_TENSOR, LoraConfig
from fmplex_broker.packages.peft_prompt import PROMPT

_MODULES = (LORA_TENSOR, EMBEDDING_TENSOR, IA3_TENSOR)


def describe(package: Package) -> dict[str, Any]:
    """Describe a package: name, digest (`artifact`), spec, files (bytes), tensors, and kind, ranks and targets of the adapter."""
    return {
        "name": package.spec.name,
        "artifact": package.digest,
        "bytes": package.nbytes,
        "spec": package.spec.model_dump(mode="json"),
        "files": {name: len(data) for name, data in package.files.items()},
        "tensors": {
            name: {
                key: {"dtype": raw.dtype, "shape": list(raw.shape)} for key, raw in tensors.read(bytes(data)).items()
            }
            for name, data in package.files.items()
            if name.endswith(".safetensors")
        },
        "adapter": _adapter(package) if ADAPTER_CONFIG in package.files else None,
    }


def _adapter(package: Package) -> dict[str, Any]:
    config = read_config(read_options(bytes(package.files[ADAPTER_CONFIG])))
    found = tensors.read(bytes(package.files[ADAPTER_WEIGHTS]))
    facts: dict[str, Any] = {"kind": config.peft_type}
    if PROMPT in found:
        return facts | {"virtual_tokens": found[PROMPT].shape[0]}
    modules = sorted({match["module"] for key in found for kind in _MODULES if (match := kind.fullmatch(key))})
    if isinstance(config, LoraConfig):
        facts["ranks"] = sorted({config.rank(module) for module in modules})
    return facts | {"targets": sorted({module.rpartition(".")[2] for module in modules}), "modules": len(modules)}
