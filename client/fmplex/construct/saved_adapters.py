"""What a team has on disk: an adapter as PEFT saved it, and the model that it was trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fmplex.construct import tensors
from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.peft_config import AdapterConfig
from fmplex_broker.packages.peft_ia3 import Ia3Config
from fmplex_broker.packages.peft_lora import SENTENCE_PREFIXES, LoraConfig
from fmplex_broker.specs.fleet import locate_model

WRAP = "base_model.model."
_ADAPTER = re.compile(r"\.lora_|\.ia3_|\.base_layer\.")  # what PEFT trains; all else it has saved whole


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as PEFT saved it: the `options` of its config file, their parsed `config`, its tensors."""

    options: dict[str, Any]
    config: AdapterConfig
    tensors: Mapping[str, tensors.StoredTensor]

    @property
    def modules(self) -> set[str]:
        """Modules that were saved whole; none of a soft prompt's, which shifts the token that classifiers read."""
        if not isinstance(self.config, LoraConfig | Ia3Config):
            return set()
        plain = (key for key in self.tensors if _ADAPTER.search(key) is None)
        return {key.removeprefix(WRAP).rpartition(".")[0] for key in plain}

    @property
    def family(self) -> str:
        """First part of the names of the adapted modules, as `bert` in `bert.encoder.layer.0.…`; empty if there is none."""
        return next((path.partition(".")[0] for path in self._adapted if "classifier" not in path), "")

    @property
    def of_sentences(self) -> bool:
        """True if it was trained around a whole SentenceTransformer, whose first module is the transformer."""
        return any(path.startswith(SENTENCE_PREFIXES) for path in self._adapted)

    @property
    def later_modules(self) -> list[str]:
        """Adapted modules of a SentenceTransformer behind the transformer."""
        return [path for path in self._adapted if path[:1].isdigit() and not path.startswith(SENTENCE_PREFIXES)]

    @property
    def _adapted(self) -> list[str]:
        return [key.removeprefix(WRAP) for key in self.tensors if _ADAPTER.search(key)]


@dataclass(frozen=True)
class BaseModel:
    """The files of the model that an adapter was trained on; `folder` None: not known. `adapter`: the adapter's own, which may
    hold the config of the model as it was trained."""

    folder: Path | None
    adapter: Path | None = None

    @classmethod
    def of(cls, model: str | None, adapter: Path | None = None) -> BaseModel:
        """Locate a model's folder. Raises `InvalidInput` (field `model`) when there is no such folder."""
        if model is None:
            return cls(None, adapter)
        folder = Path(locate_model(model, Path.cwd()))
        if not folder.is_dir():
            raise InvalidInput(
                f"{model} is not a folder; give the folder of the base model (download it first)", field="model"
            )
        return cls(folder, adapter)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json beside the adapter, else the model's; empty if there is none."""
        for folder in (self.adapter, self.folder):
            if folder is not None and (folder / "config.json").is_file():
                config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                return config
        return {}

    def tensor(self, name: str) -> tensors.StoredTensor | None:
        """Read a tensor of model.safetensors, named with or without the model's own prefix; None if there is none."""
        for path in sorted(self.folder.glob("model*.safetensors")) if self.folder is not None else ():
            if (found := tensors.find(path, [name, name.partition(".")[2]])) is not None:
                return found
        return None
