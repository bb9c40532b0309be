"""Checks of one input of a vFM. Pure.

Each function returns the input's size in bytes, and raises `InvalidInput` naming what is wrong with it.
"""

from __future__ import annotations

from typing import Any

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.wire.tensors import Tensor

INT_MAX = 2**31 - 1  # of any number that travels: JSON knows larger ones than msgpack does
_PAIR_REQUIRED = frozenset({"similarity", "ranking"})
_PAIR_ALLOWED = _PAIR_REQUIRED | {"classification", "regression"}
_INPUT_KEYS = frozenset({"text", "text_pair", "input_ids", "inputs_embeds"})
_PROMPT_KEYS = frozenset({"text", "input_ids", "messages"})
_REASONING = (
    "reasoning_content"  # what a model thought before its answer: some chat templates put it before the content
)
_ROLE_LENGTH = 64
_MESSAGE_BYTES = 16  # for what a chat template puts around each message; bounds their number too


def check_input(vfm: VfmSpec, value: Any, field: str) -> int:
    """Check an input of a vFM that reads texts."""
    if isinstance(value, str):
        if vfm.kinds & _PAIR_REQUIRED:
            raise InvalidInput(f'{vfm.name!r} compares two texts: send {{"text": ..., "text_pair": ...}}', field=field)
        return _text(value, field)
    forms = _forms(vfm, value, _INPUT_KEYS, field)
    if len(forms - {"text_pair"}) != 1:
        raise InvalidInput("send exactly one of text, input_ids, inputs_embeds", field=field)
    if "text_pair" in value and ("text" not in value or not vfm.kinds <= _PAIR_ALLOWED):
        raise InvalidInput(
            f"{vfm.name!r} ({' and '.join(sorted(vfm.kinds))}) takes no text_pair here", field=f"{field}.text_pair"
        )
    if vfm.kinds & _PAIR_REQUIRED and "text_pair" not in value:
        raise InvalidInput(f"{vfm.name!r} compares two texts: text_pair is missing", field=f"{field}.text_pair")
    if "tagging" in vfm.kinds and "text" not in value:
        raise InvalidInput("tagging needs text: spans are positions in it", field=field)
    if "text" in value:
        return sum(_text(value[k], f"{field}.{k}") for k in ("text", "text_pair") if k in value)
    [form] = forms
    return _numbers(value[form], f"{field}.{form}", integers=form == "input_ids")


def check_prompt(vfm: VfmSpec, value: Any, field: str) -> int:
    """Check a prompt of a vFM that generates. Blanks may mean something here."""
    if isinstance(value, str):
        return _text(value, field, blank=True)
    forms = _forms(vfm, value, _PROMPT_KEYS, field)
    if len(forms) != 1:
        raise InvalidInput("send exactly one of text, messages, input_ids", field=field)
    [form] = forms
    if form == "text":
        return _text(value[form], f"{field}.text", blank=True)
    if form == "input_ids":
        return _numbers(value[form], f"{field}.input_ids", integers=True)
    return _messages(value[form], f"{field}.messages")


def _forms(vfm: VfmSpec, value: Any, known: frozenset[str], field: str) -> frozenset[str]:
    """Return the keys of an input, all of which must be known."""
    if not isinstance(value, dict):
        raise InvalidInput(f"must be a string or a mapping, not {type(value).__name__}", field=field)
    if unknown := sorted(str(k) for k in value if k not in known):
        raise InvalidInput(
            f"unknown field {unknown[0]!r}; an input of {vfm.name!r} has {', '.join(sorted(known))}",
            field=f"{field}.{unknown[0]}",
        )
    return frozenset(value)


def _messages(value: Any, field: str) -> int:
    if not isinstance(value, list) or not value:
        raise InvalidInput("must be a list with at least one message", field=field)
    return sum(_MESSAGE_BYTES + _message(message, f"{field}.{i}") for i, message in enumerate(value))


def _message(value: Any, field: str) -> int:
    if not isinstance(value, dict):
        raise InvalidInput(f"must be a mapping with role and content, not {type(value).__name__}", field=field)
    if wrong := sorted(str(k) for k in (value.keys() - {_REASONING}) ^ {"role", "content"}):
        what = "is missing" if wrong[0] in ("role", "content") else "is not known; a message has role and content"
        raise InvalidInput(f"{wrong[0]} {what}", field=f"{field}.{wrong[0]}")
    role = value["role"]
    if not isinstance(role, str) or not 1 <= len(role) <= _ROLE_LENGTH:
        raise InvalidInput(
            f"must be a text of 1 to {_ROLE_LENGTH} characters: system, user, assistant, …", field=f"{field}.role"
        )
    size = utf8_bytes(role, f"{field}.role") + utf8_bytes(value["content"], f"{field}.content")
    return size + utf8_bytes(value.get(_REASONING, ""), f"{field}.{_REASONING}")


def _text(value: Any, field: str, *, blank: bool = False) -> int:
    size = utf8_bytes(value, field)
    if not (value if blank else value.strip()):
        raise InvalidInput("the text is empty", field=field)
    return size


def utf8_bytes(value: Any, field: str) -> int:
    """Return the bytes of a text. Raises `InvalidInput` for what is none."""
    if not isinstance(value, str):
        raise InvalidInput(f"must be a string, not {type(value).__name__}", field=field)
    try:
        return len(value.encode())
    except UnicodeEncodeError as e:
        raise InvalidInput(f"the text is not valid Unicode (position {e.start})", field=field) from None


def _numbers(value: Any, field: str, *, integers: bool) -> int:
    if isinstance(value, Tensor):
        right = (
            len(value.shape) == 1 and value.dtype.startswith("int")
            if integers
            else (len(value.shape) == 2 and value.dtype == "float32")
        )
        if not right:
            want = "int [tokens]" if integers else "float32 [tokens, hidden]"
            raise InvalidInput(f"must be a tensor {want}, not {value.dtype} {list(value.shape)}", field=field)
        if not value.shape[0]:
            raise InvalidInput("the tensor is empty", field=field)
        return len(value.data)
    if not integers:
        raise InvalidInput("must be a float32 tensor (msgpack body)", field=field)
    if not isinstance(value, list) or not value or any(type(n) is not int or not 0 <= n <= INT_MAX for n in value):
        raise InvalidInput("must be a list of token ids, or an integer tensor", field=field)
    return 8 * len(value)
