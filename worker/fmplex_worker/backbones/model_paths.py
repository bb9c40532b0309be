"""Check of models that are written as a path."""

from __future__ import annotations

from pathlib import Path

from fmplex_broker.errors import InvalidInput


def check_model_path(model: str, field: str) -> None:
    """Raise `InvalidInput` if `model` is a path and no folder is there: transformers would call it a bad hub id."""
    written = model.startswith(("/", ".", "~")) or model.count("/") > 1
    if written and not Path(model).is_dir():
        raise InvalidInput(
            f"{model}: no such folder; give the model's folder, with config.json, *.safetensors and tokenizer files, or a "
            "hub id",
            field=field,
        )
