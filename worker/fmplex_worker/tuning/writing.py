"""Writing what training made as the files of a package."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from peft import PeftModel
from torch import Tensor

from fmplex_broker.packages import writing
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD
from fmplex_broker.specs.vfm import VfmSpec


def write_package(out: Path, spec: VfmSpec, head: Mapping[str, Tensor], adapter: PeftModel | None) -> str:
    """Write or replace the package in `out`. Returns its digest. Raises as `fmplex_broker.packages.writing.write_package`
    does."""
    files = {HEAD: safetensors.torch.save(dict(head))} if head else {}
    if adapter is not None:
        files |= _adapter_files(adapter)
    return writing.write_package(out, spec, files).digest


def _adapter_files(model: PeftModel) -> dict[str, bytes]:
    config = model.peft_config["default"]
    # PEFT writes the set in hash order, which differs from process to process; the digest must not.
    config.target_modules = sorted(config.target_modules)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        return {name: (Path(folder) / Path(name).name).read_bytes() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
