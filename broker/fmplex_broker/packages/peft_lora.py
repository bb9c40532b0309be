"""LoRA (Hu et al. 2021) as PEFT writes it: on linear layers and on the token embeddings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field, FiniteFloat

from fmplex_broker.packages.name_patterns import MAX_PATTERNS, NamePatterns, check_patterns
from fmplex_broker.packages.peft_config import (
    HARMLESS,
    MODULES_TO_SAVE,
    AdapterConfig,
    check_names,
    rejected,
    whole_weight,
)
from fmplex_broker.specs.schema import at_most

_MERGE = "merge it into a backbone of its own, or train a plain LoRA"
# The two tensors of one linear layer, [rank, in] and [out, rank], and of an embedding, [rank, tokens] and [width, rank].
LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
EMBEDDING_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_embedding_(?P<side>[AB])")
# Of modules where PEFT wrapped a whole SentenceTransformer; its first module is the transformer.
SENTENCE_PREFIXES = ("0.model.", "0.auto_model.")
_TRAINING = """
    corda_config ensure_weight_tying eva_config exclude_modules layers_pattern layers_to_transform loftq_config lora_dropout
    lora_ga_config megatron_core qalora_group_size target_modules velora_config
"""
# Other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract what they put into the adapter from the backbone.
_BASE_KEPT = (None, True, False, "gaussian", "eva", "orthogonal", "mica")

_BEFORE = r".*\."  # PEFT 0.21 `utils.other.get_pattern_key`: a pattern matches a whole dotted suffix
_Rank = Annotated[int, Field(ge=1, le=65_536)]


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

    r: _Rank
    lora_alpha: FiniteFloat
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: Any = True
    rank_pattern: Annotated[dict[str, _Rank], at_most(MAX_PATTERNS)] | None = None
    alpha_pattern: Annotated[dict[str, FiniteFloat], at_most(MAX_PATTERNS)] | None = None

    def rank(self, module: str) -> int:
        """Return the rank of a module, by the name it has in the model that PEFT wrapped."""
        pattern = self._ranks.first(module)
        return (self.rank_pattern or {})[pattern] if pattern is not None else self.r

    def scaling(self, module: str) -> float:
        """Return a module's alpha / r, or alpha / √r with `use_rslora` (Kalajdzievski 2023)."""
        rank, pattern = self.rank(module), self._alphas.first(module)
        alpha = (self.alpha_pattern or {})[pattern] if pattern is not None else self.lora_alpha
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    @cached_property
    def _ranks(self) -> NamePatterns:
        return NamePatterns(self.rank_pattern or (), _BEFORE)

    @cached_property
    def _alphas(self) -> NamePatterns:
        return NamePatterns(self.alpha_pattern or (), _BEFORE)

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
        check_patterns("rank_pattern", self.rank_pattern or {})
        check_patterns("alpha_pattern", self.alpha_pattern or {})

    def check_tensors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the tensors; see `AdapterConfig.check_tensors`."""
        check_names(shapes, (LORA_TENSOR, EMBEDDING_TENSOR), _unknown)


def _unknown(key: str) -> str:
    if "lora_magnitude" in key:
        return f"{key!r}: DoRA is not served; train a plain LoRA"
    if "lora_" in key:
        return f"{key!r}: not a LoRA weight of a linear layer; save it with PEFT's save_pretrained"
    return whole_weight(key)
