"""A PEFT folder, read as it is and fitted to a backbone. PEFT itself is not used: its hooks hold shared state."""

from __future__ import annotations

from torch import Tensor

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.peft import check_adapter
from fmplex_broker.packages.peft_ia3 import Ia3Config
from fmplex_broker.packages.peft_lora import LoraConfig
from fmplex_broker.packages.peft_prompt import PROMPT
from fmplex_worker.adapters import ia3, lora
from fmplex_worker.adapters.files import fitted, read_tensors
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.packed.segments import Adapter

_LEAST_TEXT = 8  # tokens that a prompt must leave of what the backbone takes


def load_adapter(config_json: bytes, weights: bytes, backbone: Backbone, number: int) -> Adapter:
    """Fit `adapter_config.json` and `adapter_model.safetensors` to this backbone, in host memory.

    Thread-safe. Raises `PackageRejected`: option not served, file broken, values not finite, or made for another backbone.
    """
    config = check_adapter(config_json, weights)
    tensors = read_tensors(weights, "adapter_model.safetensors", "adapter")
    if isinstance(config, LoraConfig):
        return lora.fit(config, tensors, backbone, number)
    if isinstance(config, Ia3Config):
        return ia3.fit(config, tensors, backbone, number)
    return _prompt(tensors[PROMPT], backbone, number)


def _prompt(prompt: Tensor, backbone: Backbone, number: int) -> Adapter:
    width = backbone.embeddings.embedding_dim
    if prompt.shape[1] != width:
        raise PackageRejected(
            f"adapter was made for another backbone: its virtual tokens have width {prompt.shape[1]}, here it is {width}",
            field="adapter",
        )
    if prompt.shape[0] + _LEAST_TEXT > backbone.max_tokens:
        raise PackageRejected(
            f"adapter: {prompt.shape[0]} virtual tokens leave no room for a text, this backbone takes {backbone.max_tokens} "
            "tokens in all; train a shorter prompt",
            field="adapter",
        )
    dtype = backbone.dtype
    return Adapter(number, prompt=fitted(prompt, PROMPT, dtype, "adapter"))
