"""What is refused before it is queued. Pure; both transports (HTTP and direct Redis) pass through here.

What only the worker can know (tokens, finite numbers, label names) is checked by the worker; what must hold across gateways
(queue cap, rate) is enforced inside the `enqueue` script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fmplex_broker.errors import InvalidInput, TooLarge
from fmplex_broker.messages import Request, encode_request
from fmplex_broker.schema import Spec, parse
from fmplex_broker.specs import Slo, VfmSpec
from fmplex_broker.tensors import Tensor

MAX_INPUTS = 2048
_BYTES_PER_UNIT = 4  # of English text a token; only an estimate until the worker has tokenised
_PAIR_REQUIRED = frozenset({"similarity", "ranking"})
_PAIR_ALLOWED = _PAIR_REQUIRED | {"classification", "regression"}
_INPUT_KEYS = frozenset({"text", "text_pair", "input_ids", "inputs_embeds"})
_INT_MAX = 2**31 - 1  # of any number that travels: JSON knows larger ones than msgpack does


class Params(Spec):
    """Parameters of a call. `truncate`: cut an over-long text instead of refusing it; `dimensions`: first n of an embedding;
    `top_k`: only the k best labels."""

    truncate: bool = False
    dimensions: int | None = None
    top_k: int | None = None


def admit(vfm: VfmSpec, inputs: Sequence[Any], params: dict[str, Any] | None = None) -> list[tuple[bytes, int]]:
    """Check a call and encode one payload an input, with its estimated units.

    Raises `TooLarge` (too many inputs, an input over the vFM's byte limit) or `InvalidInput` naming the field.
    """
    if not isinstance(inputs, list | tuple):
        raise InvalidInput(f"inputs must be a list, not {type(inputs).__name__}", field="inputs")
    if not inputs:
        raise InvalidInput("inputs is empty; send at least one", field="inputs")
    if len(inputs) > MAX_INPUTS:
        raise TooLarge(
            f"{len(inputs)} inputs in one call, at most {MAX_INPUTS} are taken; split the call", field="inputs"
        )
    if len(inputs) > vfm.limits.max_pending:
        limit = vfm.limits.max_pending
        raise TooLarge(f"{len(inputs)} inputs, the queue of {vfm.name!r} holds {limit}; split the call", field="inputs")
    checked = _params(vfm, params or {})
    out = []
    for i, value in enumerate(inputs):
        size = _check(vfm, value, f"inputs.{i}")
        if size > vfm.limits.max_input_bytes:
            limit = vfm.limits.max_input_bytes
            raise TooLarge(
                f"input {i} has {size} bytes, {vfm.name!r} takes at most {limit}; shorten it", field=f"inputs.{i}"
            )
        out.append((encode_request(Request(value, checked)), max(1, size // _BYTES_PER_UNIT)))
    return out


def timeout_ms(slo: Slo, wanted: float | None) -> int:
    """The deadline of a call in ms: what the caller wants, else what the vFM promises. Raises `InvalidInput`."""
    if wanted is None:
        return slo.deadline_ms
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 1 <= wanted <= 86_400_000:
        raise InvalidInput("timeout_ms must be between 1 and 86400000", field="timeout_ms")
    return int(wanted)


def _params(vfm: VfmSpec, params: dict[str, Any]) -> dict[str, Any]:
    checked = parse(Params, params)
    for name, kinds in (("dimensions", {"embedding"}), ("top_k", {"classification"})):
        value = getattr(checked, name)
        if value is not None and not vfm.kinds & kinds:
            raise InvalidInput(f"{name} means nothing to {vfm.name!r}, which is a {_kind(vfm)} vFM", field=name)
        if value is not None and not 1 <= value <= _INT_MAX:
            raise InvalidInput(f"{name} must be between 1 and {_INT_MAX}", field=name)
    return checked.model_dump(exclude_defaults=True)


def _kind(vfm: VfmSpec) -> str:
    return " and ".join(sorted(vfm.kinds))


def _check(vfm: VfmSpec, value: Any, field: str) -> int:
    """Bytes of one input; raises `InvalidInput` naming what is wrong with it."""
    if isinstance(value, str):
        if vfm.kinds & _PAIR_REQUIRED:
            raise InvalidInput(f'{vfm.name!r} compares two texts: send {{"text": ..., "text_pair": ...}}', field=field)
        return _text(value, field)
    if not isinstance(value, dict):
        raise InvalidInput(f"must be a string or a mapping, not {type(value).__name__}", field=field)
    if unknown := sorted(str(k) for k in value if k not in _INPUT_KEYS):
        raise InvalidInput(
            f"unknown field {unknown[0]!r}; an input has {', '.join(sorted(_INPUT_KEYS))}",
            field=f"{field}.{unknown[0]}",
        )
    forms = [k for k in ("text", "input_ids", "inputs_embeds") if k in value]
    if len(forms) != 1:
        raise InvalidInput("send exactly one of text, input_ids, inputs_embeds", field=field)
    if "text_pair" in value and ("text" not in value or not vfm.kinds <= _PAIR_ALLOWED):
        raise InvalidInput(f"{vfm.name!r} ({_kind(vfm)}) takes no text_pair here", field=f"{field}.text_pair")
    if vfm.kinds & _PAIR_REQUIRED and "text_pair" not in value:
        raise InvalidInput(f"{vfm.name!r} compares two texts: text_pair is missing", field=f"{field}.text_pair")
    if "tagging" in vfm.kinds and "text" not in value:
        raise InvalidInput("tagging needs text: spans are positions in it", field=field)
    if forms[0] == "text":
        return sum(_text(value[k], f"{field}.{k}") for k in ("text", "text_pair") if k in value)
    return _numbers(value[forms[0]], f"{field}.{forms[0]}", integers=forms[0] == "input_ids")


def _text(value: Any, field: str) -> int:
    if not isinstance(value, str):
        raise InvalidInput(f"must be a string, not {type(value).__name__}", field=field)
    if not value.strip():
        raise InvalidInput("the text is empty", field=field)
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
    if not isinstance(value, list) or not value or any(type(n) is not int or not 0 <= n <= _INT_MAX for n in value):
        raise InvalidInput("must be a list of token ids, or an integer tensor", field=field)
    return 8 * len(value)
