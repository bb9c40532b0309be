"""What sentence-transformers writes beside a model or an adapter (`modules.json` and the files that it names). Pure; no tensors.

It says how hidden states become an embedding: pooling, dense layers, length 1; which prompt comes before a text, and where a text
is cut. Whatever of it cannot be served is named, so that no other embedding is given in its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from fmplex_broker.packages.json_object import read_object
from fmplex_broker.specs.heads import Pooling, ProjectionActivation

Files = Callable[[str], bytes | None]
MODULES, SETTINGS, TOKENIZER = "modules.json", "config_sentence_transformers.json", "tokenizer_config.json"
# Of the module that is the transformer; a model has one of them.
TRANSFORMER = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
# How versions before 6 say it, one key a kind of pooling.
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, ProjectionActivation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
}
_LONGEST = 67_108_864  # bytes of a file; tokenizers have a few MiB
_UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30
_OTHERS = ("SparseEncoder", "MultiVectorEncoder")
# Settings of the transformer that change what is computed, and are empty where they do not.
_CHANGES = ("query_length", "document_length", "query_expansion", "processing_kwargs")


class DenseLayer(NamedTuple):
    """A dense layer after the pooling: the folder of its weights, and its width."""

    path: str
    width: int


@dataclass(frozen=True)
class SentenceModel:
    """A model of sentence-transformers. `dense`: its layers in their order, each followed by `activation`; `prompts` by name,
    `default_prompt` the one that is always used; `prompt_pooled`: its tokens count in the pooling; `max_tokens` of a text, which
    is cut there; `similarity`: what compares two embeddings. `unserved`: what of it is not served; then nothing else counts."""

    pooling: Pooling = "mean"
    normalize: bool = False
    dense: tuple[DenseLayer, ...] = ()
    activation: ProjectionActivation = "identity"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    prompt_pooled: bool = True
    max_tokens: int | None = None
    similarity: str = "cosine"
    unserved: str = ""


class _Unserved(Exception):
    """Something in the files that is not served; its text says what."""


def read_sentence_model(files: Files) -> SentenceModel | None:
    """Read the model that `files` describe; None if sentence-transformers has written nothing there, or a cross-encoder, whose
    classifier says all. `files`: name in the folder → content, None if there is no such file."""
    if files(MODULES) is None:
        return None
    try:
        settings = _json(files, SETTINGS)
        if settings.get("model_type") == "CrossEncoder":
            return None
        return _with_settings(_read_modules(files, settings), settings)
    except _Unserved as e:
        return SentenceModel(unserved=str(e))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as e:
        return SentenceModel(unserved=f"its files cannot be read ({type(e).__name__}: {str(e)[:200]})")


def _json(files: Files, name: str) -> dict[str, Any]:
    data = files(name)
    return {} if data is None else read_object(data, _LONGEST)


def _read_modules(files: Files, settings: Mapping[str, Any]) -> SentenceModel:
    """Follow the modules: a transformer, a pooling, dense layers if any, length 1 if wanted. Raises `_Unserved`."""
    if settings.get("model_type") in _OTHERS:
        raise _Unserved(f"a {settings['model_type']} gives no embedding of a whole text")
    first, *modules = read_object(b'{"modules": %b}' % (files(MODULES) or b""), _LONGEST)["modules"]
    if _kind(first) != "Transformer":
        raise _Unserved(f"its first module is {first['type']}, not a Transformer")
    model, pooled = SentenceModel(max_tokens=_max_tokens(files, first.get("path", ""))), False
    for module in modules:
        kind, path = _kind(module), str(module.get("path", ""))
        config = _json(files, f"{path}/config.json") if path else {}
        for key in ("module_input_name", "module_output_name"):
            if config.get(key) not in (None, "sentence_embedding"):
                raise _Unserved(f"{kind} works on {config[key]!r}, not on the embedding of the text")
        if kind == "Pooling" and not pooled:
            model, pooled = _pooling(model, config), True
        elif kind == "Normalize" and pooled:
            model = replace(model, normalize=True)
        elif kind == "Dense" and pooled and not model.normalize:
            model = _dense(model, config, path)
        elif kind != "Dropout":
            raise _Unserved(
                f"{kind} is not served in this place; served are Transformer, Pooling, Dense, Normalize, in this order"
            )
    if not pooled:
        raise _Unserved("it has no Pooling")
    return model


def _kind(module: Mapping[str, Any]) -> str:
    """Return the class of a module. Raises `_Unserved` for code that is not the library's own."""
    package, _, name = str(module["type"]).rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise _Unserved(f"its module {module['type']} is code of its own")
    return name


def _max_tokens(files: Files, path: str) -> int | None:
    """Return where texts are cut, None if nothing says. Raises `_Unserved` for settings that change what is computed."""
    stem = f"{path}/" if path else ""
    said = next((config for name in TRANSFORMER if (config := _json(files, stem + name))), {})
    changes = [key for key in _CHANGES if said.get(key)]
    if said.get("transformer_task", "feature-extraction") != "feature-extraction":
        changes.append("transformer_task")
    text = said.get("modality_config", {}).get("text", {})
    if text.get("method_output_name", "last_hidden_state") != "last_hidden_state":
        changes.append("modality_config")
    if said.get("do_lower_case") and not _lowers(files, stem):
        changes.append("do_lower_case")
    if changes:
        raise _Unserved(f"its setting {changes[0]} is not served")
    most = said.get("max_seq_length") or _json(files, f"{stem}{TOKENIZER}").get("model_max_length")
    return int(most) if most is not None and most <= _UNLIMITED else None


def _lowers(files: Files, stem: str) -> bool:
    """Tell whether the tokenizer makes texts lower case by itself."""
    normalizer = json.dumps(_json(files, f"{stem}tokenizer.json").get("normalizer"))
    return '"Lowercase"' in normalizer or '"lowercase": true' in normalizer


def _pooling(model: SentenceModel, config: Mapping[str, Any]) -> SentenceModel:
    said = config.get("pooling_mode") or [kind for key, kind in _OLD_POOLINGS.items() if config.get(key)] or "mean"
    kinds = [said] if isinstance(said, str) else list(said)
    if len(kinds) != 1 or kinds[0] not in _POOLINGS:
        raise _Unserved(f"pooling {' and '.join(map(str, kinds))} is not served; one of {', '.join(_POOLINGS)} is")
    return replace(model, pooling=_POOLINGS[kinds[0]], prompt_pooled=config.get("include_prompt", True) is not False)


def _dense(model: SentenceModel, config: Mapping[str, Any], path: str) -> SentenceModel:
    if config.get("use_residual"):
        raise _Unserved("Dense with use_residual is not served")
    written = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = _ACTIVATIONS.get(written.rpartition(".")[2]) if written.startswith("torch.nn.") else None
    if activation is None:
        raise _Unserved(f"Dense with {written} is not served; with {', '.join(_ACTIVATIONS)} it is")
    if model.dense and activation != model.activation:
        raise _Unserved("Dense layers with different activations are not served")
    layer = DenseLayer(path, int(config["out_features"]))
    return replace(model, dense=(*model.dense, layer), activation=activation)


def _with_settings(model: SentenceModel, settings: Mapping[str, Any]) -> SentenceModel:
    prompts = {str(name): str(text) for name, text in (settings.get("prompts") or {}).items() if text}
    default = settings.get("default_prompt_name")
    return replace(
        model,
        prompts=prompts,
        default_prompt=prompts.get(default, "") if default else "",
        similarity=str(settings.get("similarity_fn_name") or "cosine"),
    )
