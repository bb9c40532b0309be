"""Packages from what sentence-transformers saves: pooling, dense layers, length 1, prompt and length, as its files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmplex.construct import tensors
from fmplex.construct.building import WrittenPackage, build, head_keys, head_tensors
from fmplex_broker.errors import InvalidInput, PackageRejected
from fmplex_broker.packages.package import ADAPTER_CONFIG, HEAD
from fmplex_broker.packages.sentences import MODULES, SentenceModel, read_sentence_model
from fmplex_broker.packages.weights import tensor_shapes
from fmplex_broker.specs.heads import Head, InputSpec

_WEIGHTS = "model.safetensors"
_KINDS = ("embedding", "similarity")


@dataclass(frozen=True)
class SentenceFolder:
    """A folder that sentence-transformers has written, and the model that its files describe."""

    folder: Path
    model: SentenceModel

    @classmethod
    def find(cls, *folders: str | Path | None) -> SentenceFolder | None:
        """Return the first of some folders that holds such files, None if none does."""
        for folder in folders:
            if folder is not None and (found := read_sentence_model(_reader(Path(folder)))) is not None:
                return cls(Path(folder), found)
        return None

    def head(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of the head: what the model says, over it what the caller wants. Raises `PackageRejected` that names
        what of the model cannot be served."""
        kind, model = wanted.get("kind", "embedding"), self.model
        if model.unserved and "pooling" not in wanted:
            raise self._rejected(f"{model.unserved}; or give head= with a pooling of its own")
        head: dict[str, Any] = {"kind": kind, "pooling": model.pooling}
        if kind == "embedding":
            head["normalize"] = model.normalize
            if model.dense:
                head |= {"projection": [layer.width for layer in model.dense], "activation": model.activation}
        elif model.dense:
            raise self._rejected(
                f"a {kind} head has no dense layers, this model has ({model.dense[0].path}); make it an embedding"
            )
        elif model.similarity != "cosine":
            raise self._rejected(
                f"it compares by {model.similarity}, a similarity head by cosine; make it an embedding"
            )
        return head | dict(wanted)

    def arrays(self, head: Mapping[str, Any]) -> dict[str, Any]:
        """Read the arrays of the head's dense layers. Raises `PackageRejected` for files that are missing or broken."""
        if not head.get("projection"):
            return {}
        stems = [f"hidden.{i}." for i in range(len(self.model.dense) - 1)] + [""]
        made: dict[str, Any] = {}
        for stem, layer in zip(stems, self.model.dense, strict=True):
            found = self._layer(layer.path)
            made |= {stem + key.removeprefix("linear."): tensor for key, tensor in found.items()}
        return made

    def input(self, prompt: str | None, given: Any, *, length: bool) -> dict[str, Any]:
        """Return the keys of `input`: the prompt (of that name, else the model's default), if `length` where texts are cut, and
        over them what is `given`. Raises `InvalidInput` for a prompt that the model has not, `PackageRejected`."""
        model = self.model
        if prompt is not None and prompt not in model.prompts:
            known = ", ".join(sorted(model.prompts)) or "none"
            raise InvalidInput(f"prompt: {self.folder} has no prompt {prompt!r}; it has {known}", field="prompt")
        text = model.default_prompt if prompt is None else model.prompts[prompt]
        made: dict[str, Any] = {}
        if text:
            if not model.prompt_pooled:
                raise self._rejected("its pooling leaves the prompt out (include_prompt)")
            made |= {"template": text + "{text}", "pair_template": text + "{text_pair}"}
        if length and model.max_tokens is not None:
            made |= {"max_tokens": model.max_tokens, "truncate": True}  # which sentence-transformers does unasked
        return made | (given.model_dump(exclude_unset=True) if isinstance(given, InputSpec) else dict(given or {}))

    def _layer(self, path: str) -> dict[str, tensors.StoredTensor]:
        file = self.folder / path / _WEIGHTS
        try:
            data = file.read_bytes()
        except OSError as e:
            raise PackageRejected(
                f"{file} cannot be read ({e.strerror}); save the model again, with safe_serialization=True",
                field="head",
            ) from e
        tensor_shapes(data, str(file), "head")
        return tensors.read(data)

    def _rejected(self, why: str) -> PackageRejected:
        return PackageRejected(f"{self.folder / MODULES} describes what is not served as it is: {why}", field="head")


def _reader(folder: Path) -> Any:
    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    return read


def reads_sentences(wanted: Mapping[str, Any]) -> bool:
    """Tell whether a head is one that the files of sentence-transformers describe."""
    return wanted.get("kind", "embedding") in _KINDS


def from_sentence_transformers(
    folder: str | Path,
    *,
    name: str,
    backbone: str,
    head: Head | Mapping[str, Any] | None = None,
    prompt: str | None = None,
    out: str | Path | None = None,
    **spec: Any,
) -> WrittenPackage:
    """Write a package, to `out` (default: `vfms/NAME`), of a model that sentence-transformers has saved: a whole one, whose
    transformer `backbone` hosts, or an adapter with what lies beside it.

    `folder`: where it is; `name`: of the vFM; `prompt`: the name of the one to put before every text (default: the model's own
    default); `head` overrides keys (`{"kind": "similarity"}`); `spec`: other keys of vfm.toml. Texts are cut where the model cuts
    them.
    Raises `PackageRejected` or `InvalidInput` that names what cannot be served and what to do.
    """
    from fmplex.construct.adapters import from_peft

    if (Path(folder) / Path(ADAPTER_CONFIG).name).is_file():
        return from_peft(folder, name=name, backbone=backbone, head=head, prompt=prompt, out=out, **spec)
    found = SentenceFolder.find(folder)
    if found is None:
        raise InvalidInput(
            f"{folder} has no {MODULES}; give a folder that sentence-transformers has saved", field="folder"
        )
    made = found.head(head_keys(head))
    around = found.input(prompt, spec.pop("input", None), length=True)
    files = {HEAD: tensors.write(head_tensors(arrays))} if (arrays := found.arrays(made)) else {}
    return build(out, {"name": name, "backbone": backbone, "head": made, "input": around, **spec}, files)
