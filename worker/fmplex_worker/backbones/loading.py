"""Loading a backbone: config checked, safetensors only, no remote code, pooler off, linears wrapped.

Every failure is an `InvalidInput` that names the key of the fleet file to change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import logging as transformers_logging

from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.sentences import read_sentence_model
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.backbone import Backbone, LmHead
from fmplex_worker.backbones.families import Family, family_of
from fmplex_worker.backbones.generation_config import end_tokens, sampling_defaults
from fmplex_worker.backbones.limits import max_tokens
from fmplex_worker.backbones.model_paths import check_model_path, model_file
from fmplex_worker.backbones.texts import Tokenizer
from fmplex_worker.kvcache.pool import KvShape
from fmplex_worker.packed import attention
from fmplex_worker.packed.linear import wrap_linears
from fmplex_worker.packed.memory import out_of_memory

T = TypeVar("T")


def load_backbone(spec: BackboneSpec, device: str = "auto") -> Backbone:
    """Load `spec.model` (a folder or a hub id) onto `device` (`auto`: CUDA if there is one).

    Raises `InvalidInput`: no such folder, cannot be loaded, not served, weights missing, `max_tokens` too large, no such device.
    """
    check_model_path(spec.model, "backbone.model")
    _not_an_adapter(spec.model)
    where = _device(device)
    config = _read(spec, "config", AutoConfig.from_pretrained)
    family = family_of(config)
    if family.overflows and spec.dtype == "float16":
        raise InvalidInput(
            f"a {family.model_type} overflows in float16; use bfloat16 or float32", field="backbone.dtype"
        )
    tokenizer = _read(spec, "tokenizer", AutoTokenizer.from_pretrained)
    sentence = read_sentence_model(partial(model_file, spec.model, spec.revision))
    if sentence is not None and sentence.max_tokens is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, sentence.max_tokens)
    generates = _generates(family, config)
    model = _placed(_load_model(spec, family, generates, where), where)
    model, lm_head = _split_lm_head(model, tokenizer, config) if generates else (model, None)
    targets = wrap_linears(model)
    first = family.first_position(config)
    limit = max_tokens(spec, family, config, tokenizer)
    return Backbone(
        spec=spec,
        family=family,
        model=model,
        tokenizer=Tokenizer.of(tokenizer, spec.model, limit),
        targets=targets,
        device=where,
        first_position=first,
        max_tokens=limit,
        lm_head=lm_head,
        sentence=sentence,
    )


def _generates(family: Family, config: Any) -> bool:
    """Tell whether the checkpoint has a language-model head."""
    return family.causal and any(
        name.endswith("ForCausalLM") or "LMHead" in name for name in config.architectures or ()
    )


def _split_lm_head(whole: Any, tokenizer: Any, config: Any) -> tuple[nn.Module, LmHead]:
    """Split a causal language model into its bare model and its head."""
    heads = config.num_attention_heads
    kv = KvShape(
        layers=config.num_hidden_layers,
        heads=getattr(config, "num_key_value_heads", None) or heads,
        size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=whole.dtype,
    )
    head, said = whole.get_output_embeddings(), whole.generation_config
    path = next(path for path, module in whole.named_modules() if module is head)
    lm_head = LmHead(
        head,
        path,
        end_tokens(said, tokenizer, len(head.weight)),
        tokenizer,
        kv,
        divisor=getattr(config, "logits_scaling", None) or 1.0,
        cap=getattr(config, "final_logit_softcapping", None),
        sampling=sampling_defaults(said),
    )
    return whole.base_model, lm_head


def _read(spec: BackboneSpec, what: str, load: Callable[..., T], **options: Any) -> T:
    """Call a transformers loader; False for remote code also keeps it from asking on the terminal. Raises `InvalidInput`."""
    try:
        return load(spec.model, revision=spec.revision or "main", trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
        raise InvalidInput(
            f"{what} of {spec.model!r} cannot be loaded: {e}; give a folder or a hub id that transformers loads, with "
            "config.json, *.safetensors and tokenizer files, and no code of its own",
            field="backbone.model",
        ) from e


def _load_model(spec: BackboneSpec, family: Family, generates: bool, where: torch.device) -> nn.Module:
    """Load the bare model in eval mode, with its language-model head if it `generates`. Weights that the checkpoint lacks would
    be random, so that is an error."""
    transformers_logging.set_verbosity_error()  # its report of unused weights (the pooler) and its progress bar
    transformers_logging.disable_progress_bar()  # mean nothing in a worker's log
    model, info = _read(
        spec,
        "weights",
        (AutoModelForCausalLM if generates else family.auto).from_pretrained,
        dtype=_dtype(spec, where),
        attn_implementation=attention.NAME,
        use_safetensors=True,
        output_loading_info=True,
        **family.options,
    )
    if missing := sorted(info["missing_keys"]):
        raise InvalidInput(
            f"{spec.model!r} lacks {len(missing)} weights of a {family.model_type}, for example {missing[0]!r}; "
            "use a complete checkpoint",
            field="backbone.model",
        )
    model.config.use_cache = False
    for module in model.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 0  # chunks are not the row that the adapters' slices are counted in
    if family.adapt is not None:
        family.adapt(model)
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def _placed(model: nn.Module, where: torch.device) -> nn.Module:
    """Bring a model onto its device. Raises `InvalidInput` if that has not so much memory."""
    try:
        return model.to(where)
    except Exception as e:
        if not out_of_memory(e):
            raise
        nbytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        raise InvalidInput(
            f"the backbone takes {nbytes:,} bytes, and {where} has not so many left; host a smaller one, give a shorter "
            "backbone.dtype, or free the device",
            field="backbone.model",
        ) from e


def _not_an_adapter(model: str) -> None:
    if (Path(model) / "adapter_config.json").exists():
        raise InvalidInput(
            f"{model} is an adapter, not a backbone; give the model it was made for, and deploy the adapter as a package",
            field="backbone.model",
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"this machine has {torch.cuda.device_count()} CUDA devices, not {name}", field="worker.device"
        )
    return device


def _dtype(spec: BackboneSpec, device: torch.device) -> torch.dtype:
    """Return the dtype of the weights: what the spec says; for `auto` bfloat16 where the device computes in it, else float32."""
    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)  # type: ignore[no-any-return]
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if fast else torch.float32
