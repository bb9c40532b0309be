"""Inputs of encoding vFMs: the forms of an input, the parameters of a call, and what is wrong with any other.

Pure checks; every error is an `InvalidInput` whose `field` is the path of the wrong part.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmplex_broker.errors import InvalidInput
from fmplex_broker.wire.tensors import Tensor
from fmplex_worker.backbones.texts import Raw, Text

# One text to be encoded: still text, or already tokens.
Side = Raw | Text

_FORMS = 'a text, {"text", "text_pair"}, {"input_ids"} or {"inputs_embeds"}'
_KEYS = ("text", "text_pair", "input_ids", "inputs_embeds")
# Parameter → heads that take it.
_PARAMS: dict[str, tuple[str, ...] | None] = {
    "truncate": None,
    "add_special_tokens": None,
    "dimensions": ("embedding",),
    "top_k": ("classification",),
}


@dataclass(frozen=True, slots=True)
class InputLimits:
    """Limits of a backbone: `width` of a token's embedding, number of token ids; `hidden` bounds `dimensions`."""

    hidden: int
    width: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Options:
    """The parameters of one call. `truncate` None: as the vFM says."""

    truncate: bool | None = None
    special: bool = False
    dimensions: int | None = None
    top_k: int | None = None


def read_options(params: Mapping[str, Any], kinds: AbstractSet[str], limits: InputLimits) -> Options:
    """Read the call's parameters for heads of `kinds`; each goes to those that take it, and one of them must."""
    if not params:
        return _NONE
    for name in params:
        if name not in _PARAMS:
            raise _wrong(f"params.{name}", f"unknown parameter; there are {', '.join(_PARAMS)}")
        heads = _PARAMS[name]
        if heads is not None and kinds.isdisjoint(heads):
            have = " and ".join(sorted(kinds))
            raise _wrong(f"params.{name}", f"a {have} head does not take it; only {' and '.join(heads)} does")
    for name in ("truncate", "add_special_tokens"):
        if type(params.get(name, False)) is not bool:
            raise _wrong(f"params.{name}", "must be true or false")
    truncate, special = params.get("truncate"), params.get("add_special_tokens", False)
    return Options(truncate, special, _count(params, "dimensions", limits.hidden), _count(params, "top_k", None))


_NONE = Options()


def _count(params: Mapping[str, Any], name: str, most: int | None) -> int | None:
    value = params.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1 or (most is not None and value > most):
        raise _wrong(f"params.{name}", f"must be a whole number from 1{'' if most is None else f' to {most}'}")
    return value


def read_input(value: Any, kinds: AbstractSet[str], limits: InputLimits) -> tuple[Side, ...]:
    """Read the texts of one job for heads of `kinds`: two for a similarity, else one (a pair is encoded together)."""
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise _wrong("input", f"must be {_FORMS}, not {type(value).__name__}")
    for key in value:
        if key not in _KEYS:
            raise _wrong(f"input.{key}", f"unknown key; an input is {_FORMS}")
    if "text" in value or "text_pair" in value:
        return _of_text(value, kinds)
    if len(value) != 1:
        raise _wrong("input", f"must be {_FORMS}")
    for kind, needs in (("tagging", "a text, to find spans in"), ("similarity", '{"text", "text_pair"}')):
        if kind in kinds:
            raise _wrong(f"input.{next(iter(value))}", f"a {kind} head needs {needs}")
    if "input_ids" in value:
        return (Text.of_ids(_ids(value["input_ids"], limits.vocabulary)),)
    embeds = _embeds(value["inputs_embeds"], limits.width)
    return (Text.of_ids(np.zeros(len(embeds), dtype=np.int64), embeds),)


def _of_text(value: Mapping[str, Any], kinds: AbstractSet[str]) -> tuple[Side, ...]:
    for key in ("input_ids", "inputs_embeds"):
        if key in value:
            raise _wrong(f"input.{key}", "cannot be together with text; send one of them")
    text = _text(value, "text")
    if "text_pair" not in value:
        for kind in ("similarity", "ranking"):
            if kind in kinds:
                raise _wrong("input.text_pair", f'a {kind} head compares two texts; send {{"text", "text_pair"}}')
        return (text,)
    if "tagging" in kinds:
        raise _wrong("input.text_pair", "a tagging head takes one text; send each by itself")
    pair = _text(value, "text_pair")
    return (text, pair) if "similarity" in kinds else ((text, pair),)


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        raise _wrong(f"input.{key}", "must be a text that is not empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong(f"input.{key}", "holds half of a surrogate pair; send valid Unicode") from None
    return text


def _ids(value: Any, vocabulary: int) -> NDArray[np.int64]:
    """Read token ids as they are: no special tokens are added."""
    if isinstance(value, Tensor):
        ids = value.numpy() if value.dtype in ("int64", "int32") and len(value.shape) == 1 else None
    elif isinstance(value, list) and all(type(v) is int and 0 <= v < vocabulary for v in value):
        ids = np.array(value, dtype=np.int64)
    else:
        ids = None
    if ids is None or not len(ids) or ids.min() < 0 or ids.max() >= vocabulary:
        raise _wrong("input.input_ids", f"must be a list or an integer Tensor of token ids from 0 to {vocabulary - 1}")
    return np.asarray(ids, dtype=np.int64)


def _embeds(value: Any, width: int) -> NDArray[np.float32]:
    fits = isinstance(value, Tensor) and value.dtype == "float32" and len(value.shape) == 2 and value.shape[0] > 0
    if not fits or value.shape[1] != width:
        raise _wrong("input.inputs_embeds", f"must be a float32 Tensor of shape [tokens, {width}]")
    embeds: NDArray[np.float32] = value.numpy().copy()  # a view of the message is read-only; torch wants it writable
    if not np.isfinite(embeds).all():
        raise _wrong("input.inputs_embeds", "holds NaN or infinite values")
    return embeds


def _wrong(field: str, message: str) -> InvalidInput:
    return InvalidInput(f"{field}: {message}", field=field)
