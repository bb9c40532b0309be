"""MiniLM as an ONNX file beside a copy of its folder, for infinity's `optimum` engine. Runs in infinity's own environment.

python -m benchmarks.rivals_http.export_onnx MODEL_FOLDER OUT_FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer


class States(torch.nn.Module):
    """The model with positional inputs and one output, as the exporter wants it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        """Return the last hidden states."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.model(**inputs).last_hidden_state


def export(folder: Path, out: Path) -> None:
    """Copy the model's folder and write the ONNX file into the copy."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    tokens = AutoTokenizer.from_pretrained(folder)(["hello world", "hi"], padding=True, return_tensors="pt")
    model = States(AutoModel.from_pretrained(folder, attn_implementation="eager").eval())
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "tokens"} for name in (*names, "last_hidden_state")}
    torch.onnx.export(
        model, tuple(tokens[name] for name in names), str(out / "model.onnx"), input_names=names,
        output_names=["last_hidden_state"], dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
