"""An adapter as PEFT writes it: what can be served in common passes, and why the rest is refused. Pure; no tensors.

Served are LoRA, (IA)³ and soft prompts. Whatever else would change outputs is refused by name, with what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.json_object import read_object
from fmplex_broker.packages.peft_config import AdapterConfig, rejected
from fmplex_broker.packages.peft_ia3 import Ia3Config
from fmplex_broker.packages.peft_lora import LoraConfig
from fmplex_broker.packages.peft_prompt import PromptConfig
from fmplex_broker.packages.weights import tensor_shapes
from fmplex_broker.specs.schema import invalid

SERVED: dict[str, type[AdapterConfig]] = {
    "LORA": LoraConfig,
    "IA3": Ia3Config,
    "PROMPT_TUNING": PromptConfig,
    "P_TUNING": PromptConfig,
}
_LONGEST_CONFIG = 524_288  # bytes; one that names every module of a large model three times has a third of it
_INSTEAD = "train a LoRA (LORA), (IA)³ (IA3) or a soft prompt (PROMPT_TUNING)"
_MERGE = "merge it into a backbone of its own with PEFT's merge_and_unload, or train a plain LoRA"
# peft_type → why not, and what to do instead.
_REFUSED: dict[str, str] = {
    "PREFIX_TUNING": "keys and values of every layer cannot be packed; train a soft prompt (PROMPT_TUNING) instead",
    "CARTRIDGE": "keys and values of every layer cannot be packed; train a soft prompt (PROMPT_TUNING) instead",
    "ADAPTION_PROMPT": "prompts inside the attention are not served; train a soft prompt (PROMPT_TUNING) instead",
    "MULTITASK_PROMPT_TUNING": "one prompt a task: make a vFM for each task with a PROMPT_TUNING of its own",
    "CPT": "its prompt mixes trained and fixed tokens; train a soft prompt (PROMPT_TUNING) instead",
    "XLORA": "several adapters mixed by a router: make a vFM for each LoRA",
    "POLY": "several adapters mixed by a router: make a vFM for each LoRA",
    "ADALORA": "its ranks are decided by a trained mask; train a plain LoRA with rank_pattern",
    "TRAINABLE_TOKENS": "trained tokens change the shared embeddings; train a LoRA or a soft prompt",
    **dict.fromkeys(("LN_TUNING", "BEFT", "OSF", "SHIRA"), f"it changes the backbone's own weights; {_INSTEAD}"),
    **dict.fromkeys(("LOHA", "LOKR", "VERA", "OFT", "BOFT", "HRA", "MISS", "BONE"), f"its update is no plain LoRA; {_MERGE}"),
}  # fmt: skip


def check_adapter(config: bytes, weights: bytes | memoryview) -> AdapterConfig:
    """Check that an adapter can be served in common passes and return its config. Raises `PackageRejected` that names what
    cannot."""
    read = read_config(read_options(config))
    read.check_tensors(tensor_shapes(weights, "adapter_model.safetensors", "adapter"))
    return read


def read_options(data: bytes) -> dict[str, Any]:
    """Read the options of an `adapter_config.json`, whatever they are. Raises `PackageRejected`: no JSON, too long, too deep."""
    try:
        return read_object(data, _LONGEST_CONFIG)
    except ValueError as e:
        raise _no_config(str(e)) from e


def read_config(options: Mapping[str, Any]) -> AdapterConfig:
    """Make the config of an adapter from its options, by its `peft_type`. Raises `PackageRejected` that names the option and says
    what to do."""
    name = options.get("peft_type")
    if not isinstance(name, str):
        raise _no_config("peft_type is missing")
    if name not in SERVED:
        raise rejected(f"peft_type {name!r} is not served: {_REFUSED.get(name, _INSTEAD)}")
    try:
        config = SERVED[name].model_validate(options)
    except ValidationError as e:
        raise _no_config(invalid(e).message) from e
    config.check()
    return config


def _no_config(why: str) -> PackageRejected:
    return PackageRejected(f"adapter_config.json is not a PEFT config: {why}", field="adapter")
