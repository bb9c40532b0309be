"""An adapter as PEFT writes it: what we can serve, what the scaling is, and why the rest is refused. Pure; no tensors.

Whatever would change outputs and is not served is refused by name; an option that this version does not know is refused
too, because ignoring it would be a guess.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from fmplex_broker.errors import PackageRejected
from fmplex_broker.schema import invalid
from fmplex_broker.weights import tensor_shapes

_MERGE = "merge it into a backbone of its own, or train a plain LoRA"
# The two tensors of one linear layer.
LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Options that change the result and are not served: name → what to do instead.
REFUSED: dict[str, str] = {
    "use_dora": f"DoRA is not served; {_MERGE}",
    "lora_bias": "train with lora_bias=False",
    "modules_to_save": "leave whole modules out of the adapter: put the head into head.safetensors (weight, bias)",
    "trainable_token_indices": "trained tokens change the shared embeddings; train without trainable_token_indices",
    "target_parameters": "only linear layers are served; use target_modules",
    "layer_replication": f"replicated layers are another backbone; {_MERGE}",
    "alora_invocation_tokens": "activated LoRA is not served; train a plain LoRA",
    "megatron_config": "Megatron layers are not served; convert the adapter to plain PEFT LoRA",
    "fan_in_fan_out": "only nn.Linear layers are served; train with fan_in_fan_out=False",
    "use_qalora": f"QALoRA is not served; {_MERGE}",
    "use_bdlora": f"block-diagonal LoRA is not served; {_MERGE}",
    "arrow_config": f"Arrow routing is not served; {_MERGE}",
    "kasa_config": f"KaSA changes the backbone's weights; {_MERGE}",
    "monteclora_config": f"MonteCLoRA is not served; {_MERGE}",
}
# Options that say how it was trained or stored, and change nothing of what is computed from the saved tensors.
_TRAINING = """
    auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules inference_mode
    layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_core peft_version
    qalora_group_size revision runtime_config target_modules task_type velora_config
"""
HARMLESS = frozenset(_TRAINING.split())
# Other initialisations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract what they put into the adapter from the backbone.
_BASE_KEPT = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


class LoraConfig(BaseModel):
    """The fields that decide rank and scaling; PEFT's own names."""

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: str
    r: PositiveInt
    lora_alpha: FiniteFloat
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: Any = True
    rank_pattern: dict[str, PositiveInt] | None = Field(default=None)
    alpha_pattern: dict[str, FiniteFloat] | None = Field(default=None)

    def rank(self, module: str) -> int:
        """Rank of a module, by the name it has in the model that PEFT wrapped."""
        return int(_matching(self.rank_pattern or {}, module, self.r))

    def scaling(self, module: str) -> float:
        """alpha / r, or alpha / √r with `use_rslora` (Kalajdzievski 2023)."""
        rank = self.rank(module)
        alpha = float(_matching(self.alpha_pattern or {}, module, self.lora_alpha))
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def check_adapter(config: bytes, weights: bytes) -> None:
    """Refuses by name what cannot be served in common passes. Raises `PackageRejected`."""
    read_config(config)
    for name in tensor_shapes(weights, "adapter_model.safetensors", "adapter"):
        if LORA_TENSOR.fullmatch(name) is None:
            raise PackageRejected(f"adapter_model.safetensors holds {name!r}: {_unknown(name)}", field="adapter")


def _unknown(key: str) -> str:
    if "lora_embedding" in key:
        return "LoRA on embeddings is not served; target linear layers only"
    if "lora_magnitude" in key:
        return "DoRA is not served; train a plain LoRA"
    if "lora_" in key:
        return "not a LoRA weight of a linear layer; save it with PEFT's save_pretrained"
    return "a whole weight is not served; put a head into head.safetensors and leave other modules untrained"


def read_config(data: bytes) -> LoraConfig:
    """`adapter_config.json`. Raises `PackageRejected` that names the option and says what to do."""
    try:
        raw = json.loads(data)
        config = LoraConfig.model_validate(raw)
    except (ValueError, RecursionError) as e:
        why = invalid(e).message if isinstance(e, ValidationError) else str(e)
        raise PackageRejected(f"adapter_config.json is not a PEFT LoRA config: {why}", field="adapter") from e
    _refuse(config)
    return config


def _refuse(config: LoraConfig) -> None:
    if config.peft_type != "LORA":
        raise _rejected(f"peft_type {config.peft_type!r} is not served; train a LoRA")
    if config.bias != "none":
        raise _rejected(f"bias={config.bias!r} changes the backbone's biases; train with bias='none'")
    if config.init_lora_weights not in _BASE_KEPT:
        raise _rejected(
            f"init_lora_weights={config.init_lora_weights!r} changes the backbone's weights; convert it to a plain LoRA "
            "with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    for option, value in (config.model_extra or {}).items():
        if not value or option in HARMLESS:
            continue
        advice = REFUSED.get(option, "this option is not known here; train without it")
        raise _rejected(f"{option}: {advice}")
    for pattern in (*(config.rank_pattern or {}), *(config.alpha_pattern or {})):
        _check_pattern(pattern)


def _matching(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The first pattern that matches wins (PEFT 0.21 `utils.other.get_pattern_key`: a whole dotted suffix, as a regex)."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _check_pattern(pattern: str) -> None:
    """Patterns come from whoever made the adapter, and Python's regex can be made to run for years."""
    repeats = sum(pattern.count(c) for c in "*+{")
    if len(pattern) > 256 or repeats > 3 or re.search(r"\)\s*[*+{]", pattern):
        raise _rejected(f"pattern {pattern[:64]!r} is too complex; name the modules, or use at most three of * + {{")
    try:
        re.compile(pattern)
    except re.error as e:
        raise _rejected(f"pattern {pattern!r} is not a regular expression ({e})") from e


def _rejected(message: str) -> PackageRejected:
    return PackageRejected(f"adapter_config.json: {message}", field="adapter")
