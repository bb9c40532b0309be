"""Packages from PEFT adapters: copied as they are, but for classifiers saved in them, which become head.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmplex.construct import tensors
from fmplex.construct.building import WrittenPackage, adapter_files, build, head_tensors
from fmplex.construct.chat_files import compare_tokenizers, generation_settings
from fmplex.construct.classifiers import BaseModel, Classifier, SavedAdapter, classifier
from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD
from fmplex_broker.packages.peft import read_config, read_options
from fmplex_broker.packages.weights import tensor_shapes
from fmplex_broker.specs.heads import Head


def from_peft(
    adapter: str | Path,
    *,
    name: str,
    backbone: str,
    head: Head | Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    model: str | None = None,
    out: str | Path | None = None,
    **spec: Any,
) -> WrittenPackage:
    """Write a package, to `out` (default: `vfms/NAME`), of an adapter that PEFT has saved: LoRA, (IA)³ or a soft prompt.

    `adapter`: its folder; `name`: of the vFM; `backbone`: the one it will live on; `spec`: other keys of vfm.toml. An adapter
    trained as SEQ_CLS or TOKEN_CLS holds its classifier, which becomes the head: `labels` in the order of its outputs (default:
    what the config of `model` says; one output and no labels: regression). `model` is the folder of the base model it was
    trained on, asked for where the classifier needs a layer of it (BERT's pooler). `head` overrides the kind (`{"kind":
    "ranking"}`). An adapter without a classifier gets `head` as it is (default: embedding), with its `weights` if it has any.
    What a generation head leaves open it takes from the chat template, tokenizer (its end) and generation_config.json beside the
    adapter. The tokenizer itself is the backbone's: another one than `model` has is refused (not known: a `UserWarning`).

    Raises `PackageRejected` or `InvalidInput` that names what cannot be served and what to do.
    """
    files = adapter_files(Path(adapter))
    tensor_shapes(files[ADAPTER_WEIGHTS], "adapter_model.safetensors", "adapter")
    saved = _read_adapter(files)
    base = model or _base_model(saved.options)
    wanted: dict[str, Any] = dict(head) if isinstance(head, Mapping) else _said(head)
    generates = wanted.get("kind") == "generation"
    compare_tokenizers(Path(adapter), base, warn=generates)
    if not saved.modules:
        wanted = generation_settings(Path(adapter)) | wanted if generates else wanted or {"kind": "embedding"}
        if weights:
            files[HEAD] = tensors.write(head_tensors(weights))
    elif weights:
        raise InvalidInput("the adapter holds a classifier already; leave weights out", field="weights")
    else:
        wanted = _classifier(saved, classifier(saved, BaseModel.of(base), tuple(labels), wanted), files)
    return build(out, {"name": name, "backbone": backbone, "head": wanted, **spec}, files)


def _classifier(saved: SavedAdapter, found: Classifier, files: dict[str, bytes]) -> dict[str, Any]:
    """Move an adapter's classifier into a head's file, in `files`; return the head."""
    files[HEAD] = tensors.write(head_tensors(found.arrays))
    rest = {key: raw for key, raw in saved.tensors.items() if key not in found.used}
    files[ADAPTER_WEIGHTS] = tensors.write(rest)
    files[ADAPTER_CONFIG] = json.dumps(saved.options | {"modules_to_save": None}, indent=2, sort_keys=True).encode()
    return found.head


def _said(head: Head | None) -> dict[str, Any]:
    """Return what a head's author has written of it."""
    return {} if head is None else head.model_dump(exclude_unset=True) | {"kind": head.kind}


def _read_adapter(files: Mapping[str, bytes]) -> SavedAdapter:
    """Read a PEFT adapter, its modules that were saved whole left out of its config. Raises `PackageRejected`."""
    options = read_options(files[ADAPTER_CONFIG])
    config = read_config(options | {"modules_to_save": None})
    return SavedAdapter(options, config, tensors.read(files[ADAPTER_WEIGHTS]))


def _base_model(options: Mapping[str, Any]) -> str | None:
    """Return the model that the adapter says it was trained on, if that is a folder of this machine."""
    model = options.get("base_model_name_or_path")
    return model if isinstance(model, str) and Path(model).is_dir() else None
