"""LoRA (Hu et al. 2021) as PEFT writes it: on linear layers and on the token embeddings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, FiniteFloat, PositiveInt

from fmplex_broker.packages.peft_config import (
    HARMLESS,
    MODULES_TO_SAVE,
    AdapterConfig,
    check_pattern,
    rejected,
    rejected_tensor,
    whole_weight,
)

_MERGE = "merge it into a backbone of its own, or train a plain LoRA"
# The two tensors of one linear layer, [rank, in] and [out, rank], and of an embedding, [rank, tokens] and [width, rank].
LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
EMBEDDING_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_embedding_(?P<side>[AB])")
# PEFT stores the embeddings themselves beside a LoRA on them; they must be those of the backbone.
BASE_EMBEDDING = re.compile(r"base_model\.model\.(?P<module>.+)\.base_layer\.weight")
_TRAINING = """
    corda_config ensure_weight_tying eva_config exclude_modules layers_pattern layers_to_transform loftq_config lora_dropout
    lora_ga_config megatron_core qalora_group_size target_modules velora_config
"""
# Other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract what they put into the adapter from the backbone.
_BASE_KEPT = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


class LoraConfig(AdapterConfig):
    """Config of a LoRA: the fields that decide rank and scaling."""

    refused: ClassVar[Mapping[str, str]] = {
        "use_dora": f"DoRA is not served; {_MERGE}",
        "lora_bias": "train with lora_bias=False",
        "modules_to_save": MODULES_TO_SAVE,
        "trainable_token_indices": "trained tokens change the shared embeddings; train without trainable_token_indices",
        "target_parameters": "only linear layers are served; use target_modules",
        "layer_replication": f"replicated layers are another backbone; {_MERGE}",
        "alora_invocation_tokens": "activated LoRA is not served; train a plain LoRA",
        "megatron_config": "Megatron layers are not served; convert the adapter to plain PEFT LoRA",
        "use_qalora": f"QALoRA is not served; {_MERGE}",
        "use_bdlora": f"block-diagonal LoRA is not served; {_MERGE}",
        "arrow_config": f"Arrow routing is not served; {_MERGE}",
        "kasa_config": f"KaSA changes the backbone's weights; {_MERGE}",
        "monteclora_config": f"MonteCLoRA is not served; {_MERGE}",
    }
    harmless: ClassVar[frozenset[str]] = HARMLESS | frozenset(_TRAINING.split())

    r: PositiveInt
    lora_alpha: FiniteFloat
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: Any = True
    rank_pattern: dict[str, PositiveInt] | None = Field(default=None)
    alpha_pattern: dict[str, FiniteFloat] | None = Field(default=None)

    def rank(self, module: str) -> int:
        """Return the rank of a module, by the name it has in the model that PEFT wrapped."""
        return int(_matching(self.rank_pattern or {}, module, self.r))

    def scaling(self, module: str) -> float:
        """Return a module's alpha / r, or alpha / √r with `use_rslora` (Kalajdzievski 2023)."""
        rank = self.rank(module)
        alpha = float(_matching(self.alpha_pattern or {}, module, self.lora_alpha))
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def check(self) -> None:
        """Check the options; see `AdapterConfig.check`."""
        if self.bias != "none":
            raise rejected(f"bias={self.bias!r} changes the backbone's biases; train with bias='none'")
        if self.init_lora_weights not in _BASE_KEPT:
            raise rejected(
                f"init_lora_weights={self.init_lora_weights!r} changes the backbone's weights; convert it to a plain LoRA "
                "with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
            )
        super().check()
        for pattern in (*(self.rank_pattern or {}), *(self.alpha_pattern or {})):
            check_pattern(pattern)

    def check_tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the tensors; see `AdapterConfig.check_tensors`."""
        embeddings = {match["module"] for name in shapes if (match := EMBEDDING_TENSOR.fullmatch(name))}
        for name in shapes:
            if LORA_TENSOR.fullmatch(name) or EMBEDDING_TENSOR.fullmatch(name):
                continue
            base = BASE_EMBEDDING.fullmatch(name)
            if base is None or base["module"] not in embeddings:
                raise rejected_tensor(_unknown(name))


def _unknown(key: str) -> str:
    if "lora_magnitude" in key:
        return f"{key!r}: DoRA is not served; train a plain LoRA"
    if "lora_" in key:
        return f"{key!r}: not a LoRA weight of a linear layer; save it with PEFT's save_pretrained"
    return whole_weight(key)


def _matching(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that matches (PEFT 0.21 `utils.other.get_pattern_key`: a whole dotted suffix, as a
    regex)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
