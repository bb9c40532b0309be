"""Packages for the tests: `vfm.toml`, random head weights, and LoRA adapters in PEFT's format, written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.support.toml import write_toml

HIDDEN, LAYERS, INNER = 384, 6, 1536  # of MiniLM-L6
# The linears of a BERT layer: name -> (inputs, outputs).
LINEARS = {
    "attention.self.query": (HIDDEN, HIDDEN),
    "attention.self.key": (HIDDEN, HIDDEN),
    "attention.self.value": (HIDDEN, HIDDEN),
    "attention.output.dense": (HIDDEN, HIDDEN),
    "intermediate.dense": (HIDDEN, INNER),
    "output.dense": (INNER, HIDDEN),
}
QUERY_VALUE = ("attention.self.query", "attention.self.value")

Arrays = dict[str, NDArray[np.float32]]


def write_package(
    folder: Path, head: dict[str, Any], *, name: str | None = None, backbone: str = "minilm", seed: int = 0, rank: int = 0,
    targets: Sequence[str] = QUERY_VALUE, config: dict[str, Any] | None = None, hidden: int = HIDDEN, **operating: Any,
) -> Path:  # fmt: skip
    """Write a vFM package named like its folder. `rank` > 0 adds an adapter on `targets`; `hidden`: the
    model's width; `operating`: weight, limits, slo."""
    folder.mkdir(parents=True)
    write_manifest(folder, {"name": name or folder.name, "backbone": backbone, "head": head, **operating})
    if rows := outputs(head):
        save_file(head_weights(rows, seed, hidden), folder / "head.safetensors")
    if rank:
        write_adapter(
            folder / "adapter", lora(rank, targets, seed, hidden=hidden), r=rank, lora_alpha=2 * rank, **(config or {})
        )
    return folder


def write_manifest(folder: Path, spec: dict[str, Any]) -> None:
    write_toml(folder / "vfm.toml", spec)


def write_adapter(folder: Path, tensors: Arrays, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def outputs(head: dict[str, Any]) -> int:
    """Count the rows of the head's weight; 0 when it has none."""
    match head["kind"]:
        case "classification":
            return len(head["labels"])
        case "tagging":
            return 1 + len(head["labels"])
        case "regression" | "ranking":
            return 1
        case _:
            return 0


def head_weights(rows: int, seed: int = 0, hidden: int = HIDDEN) -> Arrays:
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 0.1, (rows, hidden)).astype(np.float32)
    return {"weight": weight, "bias": rng.normal(0, 0.1, rows).astype(np.float32)}


def lora(
    rank: int, targets: Sequence[str] = QUERY_VALUE, seed: int = 0, layers: int = LAYERS, hidden: int = HIDDEN
) -> Arrays:
    """Draw A and B, large enough that an output without them is another one. `hidden` scales every width."""
    linears = {
        f"encoder.layer.{layer}.{target}": tuple(n * hidden // HIDDEN for n in LINEARS[target])
        for layer in range(layers)
        for target in targets
    }
    return lora_factors(linears, rank, seed + 1000, 0.05)


def lora_factors(linears: Mapping[str, tuple[int, ...]], rank: int, seed: int, scale: float) -> Arrays:
    """Draw A and B for each linear (its name -> inputs, outputs), as PEFT names them."""
    rng = np.random.default_rng(seed)
    tensors: Arrays = {}
    for name, (inputs, outs) in linears.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.normal(0, scale, (rank, inputs)).astype(np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.normal(0, scale, (outs, rank)).astype(np.float32)
    return tensors
