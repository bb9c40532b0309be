"""Packages from PEFT adapters: copied as they are, but for classifiers saved in them, which become head.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmplex.construct import tensors
from fmplex.construct.building import WrittenPackage, adapter_files, build, head_keys, head_tensors
from fmplex.construct.chat_files import compare_tokenizers, generation_settings
from fmplex.construct.classifiers import classifier
from fmplex.construct.saved_adapters import BaseModel, SavedAdapter
from fmplex.construct.sentences import SentenceFolder, reads_sentences
from fmplex_broker.errors import InvalidInput, PackageRejected
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
    prompt: str | None = None,
    out: str | Path | None = None,
    **spec: Any,
) -> WrittenPackage:
    """Write a package, to `out` (default: `vfms/NAME`), of an adapter that PEFT has saved: LoRA, (IA)³ or a soft prompt.

    `adapter`: its folder; `name`: of the vFM; `backbone`: the one it will live on; `spec`: other keys of vfm.toml. An adapter
    trained as SEQ_CLS or TOKEN_CLS holds its classifier, which becomes the head: `labels` in the order of its outputs (default:
    what the config beside it, or of `model`, says; one output and no labels: regression). `model` is the folder of its base
    model, asked for where the classifier needs a layer of it (BERT's pooler). `head` overrides the kind (`{"kind": "ranking"}`).
    An adapter without a classifier gets `head` as it is (default: embedding), with its `weights` if it has any. Files beside it
    say what is left open: for an embedding or similarity those of sentence-transformers, also the base model's (`prompt`: which
    one); for a generation chat template, end and sampling. Another tokenizer than `model` has is refused (not known: warned of).

    Raises `PackageRejected` or `InvalidInput` that names what cannot be served and what to do.
    """
    files, saved = _read_adapter(Path(adapter))
    wanted, arrays = head_keys(head), weights
    base = model or _base_model(saved.options)
    compare_tokenizers(Path(adapter), base, warn=wanted.get("kind") == "generation")
    if not saved.modules:
        wanted, dense, spec = _plain(Path(adapter), saved, base, wanted, prompt, spec)
        arrays = weights or dense
    else:
        _refuse_beside_classifier(weights=bool(weights), prompt=prompt is not None)
        found = classifier(saved, BaseModel.of(base, Path(adapter)), tuple(labels), wanted)
        wanted, arrays = found.head, found.arrays
        files |= _without_classifier(saved, found.used)
    if arrays:
        files[HEAD] = tensors.write(head_tensors(arrays))
    return build(out, {"name": name, "backbone": backbone, "head": wanted, **spec}, files)


def _refuse_beside_classifier(**given: bool) -> None:
    for field in (name for name, is_given in given.items() if is_given):
        raise InvalidInput(f"the adapter holds a classifier already; leave {field} out", field=field)


def _without_classifier(saved: SavedAdapter, used: set[str]) -> dict[str, bytes]:
    """Return the files of an adapter without the tensors that went into the head."""
    rest = {key: raw for key, raw in saved.tensors.items() if key not in used}
    options = json.dumps(saved.options | {"modules_to_save": None}, indent=2, sort_keys=True).encode()
    return {ADAPTER_CONFIG: options, ADAPTER_WEIGHTS: tensors.write(rest)}


def _plain(
    adapter: Path,
    saved: SavedAdapter,
    base: str | None,
    wanted: dict[str, Any],
    prompt: str | None,
    spec: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return head, its arrays and the other keys of vfm.toml for an adapter without a classifier. Raises as `from_peft` does."""
    if saved.later_modules:
        raise PackageRejected(
            f"the adapter changes {saved.later_modules[0]}, a module behind the transformer; train without it",
            field="adapter",
        )
    if wanted.get("kind") == "generation":
        wanted = generation_settings(adapter) | wanted
    found = SentenceFolder.find(adapter, base) if reads_sentences(wanted) else None
    if found is None:
        if prompt is not None:
            raise InvalidInput(
                "prompt: there are no files of sentence-transformers; say input= with a template", field="prompt"
            )
        if saved.of_sentences and not wanted:
            raise InvalidInput(
                "the adapter was trained around a whole SentenceTransformer; give model=, its folder, so that pooling and all "
                'behind it are known, or head= ({"kind": "embedding", "pooling": "mean", "normalize": False})',
                field="model",
            )
        return wanted or {"kind": "embedding"}, {}, spec
    head = found.head(wanted)
    around = found.input(prompt, spec.get("input"), length=found.folder == adapter)
    return head, found.arrays(head), spec | {"input": around}


def _read_adapter(folder: Path) -> tuple[dict[str, bytes], SavedAdapter]:
    """Read the files of a PEFT adapter, and the adapter, its modules that were saved whole left out of its config. Raises
    `PackageRejected`."""
    files = adapter_files(folder)
    tensor_shapes(files[ADAPTER_WEIGHTS], "adapter_model.safetensors", "adapter")
    options = read_options(files[ADAPTER_CONFIG])
    config = read_config(options | {"modules_to_save": None})
    return files, SavedAdapter(options, config, tensors.read(files[ADAPTER_WEIGHTS]))


def _base_model(options: Mapping[str, Any]) -> str | None:
    """Return the model that the adapter says it was trained on, if that is a folder of this machine."""
    model = options.get("base_model_name_or_path")
    return model if isinstance(model, str) and Path(model).is_dir() else None
