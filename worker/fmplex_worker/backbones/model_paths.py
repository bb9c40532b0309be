"""Models that are written as a path, and the files of models wherever they are."""

from __future__ import annotations

from pathlib import Path

from transformers.utils.hub import cached_file

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


def model_file(model: str, revision: str | None, name: str) -> bytes | None:
    """Read a file of a model, a folder or a hub id; None if it has no such file, or it cannot be had."""
    found = cached_file(
        model,
        name,
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found).read_bytes()
