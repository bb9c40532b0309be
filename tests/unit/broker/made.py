"""Packages and their parts, made in memory."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD, Package, make_package
from fmplex_broker.specs.heads import Head
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmSpec

WIDTH = 4


def head(rows: int = 2, value: float = 1.0, **more: tuple[int, ...]) -> bytes:
    """head.safetensors of a linear head; `more`: other tensors by shape."""
    shapes = {"weight": (rows, WIDTH), "bias": (rows,), **more}
    return save({name: np.full(shape, value, dtype=np.float32) for name, shape in shapes.items()})


def adapter(value: float = 1.0, **config: Any) -> dict[str, bytes]:
    """The two files of a LoRA on one linear layer."""
    stem = "base_model.model.encoder.layer.0.attention.self.query"
    tensors = {
        f"{stem}.lora_A.weight": np.full((2, WIDTH), value, dtype=np.float32),
        f"{stem}.lora_B.weight": np.full((WIDTH, 2), value, dtype=np.float32),
    }
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    return {ADAPTER_CONFIG: json.dumps(said).encode(), ADAPTER_WEIGHTS: save(tensors)}


def spec(kind: str = "classification", **more: Any) -> VfmSpec:
    said = {"kind": kind, **({"labels": ["no", "yes"]} if kind == "classification" else {})}
    return VfmSpec(**{"name": "v", "backbone": "m", "head": parse(Head, said), **more})  # type: ignore[arg-type]


def archive(spec: Any, files: Mapping[str, bytes] | None = None) -> bytes:
    """An archive of whatever is given as its spec, unchecked."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {"vfm.json": json.dumps(spec).encode(), **(files or {})}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def package(kind: str = "classification", **more: Any) -> Package:
    """A package with a head, and an adapter."""
    files = {HEAD: head(2 if kind == "classification" else 1)} if kind in ("classification", "regression") else {}
    return make_package(spec(kind, **more), {**files, **adapter()})
