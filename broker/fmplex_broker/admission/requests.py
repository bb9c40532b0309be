"""Checks of a whole call before it is queued. Pure; both transports (HTTP and direct Redis) pass through here.

What only the worker can know (tokens, finite numbers, label names) is checked by the worker; what must hold across gateways
(queue cap, rate) is enforced inside the `enqueue` script.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from fmplex_broker.admission.inputs import INT_MAX, check_input, check_prompt, utf8_bytes
from fmplex_broker.errors import InvalidInput, TooLarge
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.sampling import SAMPLING, GenerationParams, derive_seed, nth_seed
from fmplex_broker.specs.schema import Spec, parse
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.wire.messages import INTERACTIVE, Part, Payload, Request, SharedPayload, encode_request, packb

MAX_INPUTS = 2048
MAX_KEY_BYTES = 1024  # of an idempotency key
MAX_SCHEMA_BYTES = 65_536
_SHARED_FROM = 1024  # bytes; what is smaller travels with every job: to name it costs as much
_DAY_MS = 86_400_000
_BYTES_PER_UNIT = 4  # of English text a token; only an estimate until the worker has tokenised


class Params(Spec):
    """Parameters of a call to a vFM that does not generate. `truncate`: cut an over-long text instead of refusing it (default: as
    the vFM says); `add_special_tokens`: to token ids those that the tokenizer adds to texts, unless they are there;
    `dimensions`: first n of an embedding; `top_k`: only the k best labels."""

    truncate: bool | None = None
    add_special_tokens: bool = False
    dimensions: int | None = None
    top_k: int | None = None


P = TypeVar("P", bound=Spec)
_ANY_PARAMS = frozenset(
    field.alias or name for kind in (Params, GenerationParams) for name, field in kind.model_fields.items()
)


def admit(
    vfm: VfmSpec, inputs: Sequence[Any], params: dict[str, Any] | None = None, *, call: str = "", n: int = 1
) -> list[tuple[Payload, int]]:
    """Check a call and encode one payload an input (`n` that stand next to each other), with its estimated units. What several of
    them have in common (parameters, and the input of `n` texts) they share, if it is not small.

    `call`: the call's name. Texts that need a seed and were sent without one get theirs from it, each another one: a call that is
    repeated under its name gives the same payloads. With a seed, the `n` texts of each input count up from it.

    Raises `TooLarge` (too many inputs, an input over the vFM's byte limit) or `InvalidInput` naming the field.
    """
    return [job for jobs in admitting(vfm, inputs, params, call=call, n=n) for job in jobs]


def admitting(
    vfm: VfmSpec, inputs: Sequence[Any], params: dict[str, Any] | None = None, *, call: str = "", n: int = 1
) -> Iterator[list[tuple[Payload, int]]]:
    """Do what `admit` does step by step: yield the jobs of one input after the other, so that a large call need not be checked
    in one go. Raises as `admit` does."""
    _check_count(vfm, inputs, n)
    head = vfm.head if isinstance(vfm.head, Generation) else None
    checked = _params(vfm, params or {}) if head is None else _generation_params(vfm, head, params or {})
    common = _part("params", checked.params) if n * len(inputs) > 1 else None
    nbytes = 0
    for i, value in enumerate(inputs):
        size = (check_input if head is None else check_prompt)(vfm, value, f"inputs.{i}")
        if size > vfm.limits.max_input_bytes:
            limit = vfm.limits.max_input_bytes
            raise TooLarge(
                f"{size} bytes, {vfm.name!r} takes at most {limit} in an input; shorten it", field=f"inputs.{i}"
            )
        units = max(1, size // _BYTES_PER_UNIT) + checked.tokens
        text = _part("input", value) if n > 1 else None
        parts = tuple(part for part in (common, text) if part is not None)
        jobs: list[tuple[Payload, int]] = []
        for k in range(n):
            own = _seed(checked, k, f"{vfm.name}:{call}:{i * n + k}")
            request = Request(None if text else value, own if common else checked.params | own)
            encoded = encode_request(request)
            jobs.append((SharedPayload(encoded, parts) if parts else encoded, units))
            nbytes += len(encoded)
        nbytes += len(text.data) if text else 0
        check_bytes(vfm, nbytes)  # before more of them are encoded
        yield jobs


def _part(key: str, value: Any) -> Part | None:
    """Make what jobs share of a value, None if it is small. What cannot travel is refused with the job itself."""
    try:
        part = Part.of(key, value)
    except TypeError:
        return None
    return part if len(part.data) >= _SHARED_FROM else None


def check_bytes(vfm: VfmSpec, nbytes: int) -> None:
    """Refuse a call whose jobs take so many bytes in the broker that they would never be taken. Raises `TooLarge`."""
    for key in ("max_call_bytes", "max_pending_bytes"):
        most = getattr(vfm.limits, key)
        if nbytes > most:
            raise TooLarge(
                f"the call has {nbytes} bytes, {vfm.name!r} takes at most {most} (limits.{key}); split it",
                field="inputs",
            )


def check_key(key: str | None) -> None:
    """Check the idempotency key of a call, which is kept for every input. Raises `InvalidInput`."""
    if key is not None and not 1 <= utf8_bytes(key, "idempotency_key") <= MAX_KEY_BYTES:
        raise InvalidInput(f"must have 1 to {MAX_KEY_BYTES} bytes", field="idempotency_key")


def timeout_ms(vfm: VfmSpec, wanted: float | None, cls: str = INTERACTIVE) -> int:
    """Return the deadline of a call in ms: what the caller wants, else what the vFM promises those who wait for an answer; an
    offline call has a day, and may have a week. Raises `InvalidInput`."""
    if wanted is None:
        return vfm.deadline_ms if cls == INTERACTIVE else _DAY_MS
    most = _DAY_MS if cls == INTERACTIVE else 7 * _DAY_MS
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 1 <= wanted <= most:
        offline = "" if cls == INTERACTIVE else " for offline jobs"
        raise InvalidInput(f"timeout_ms must be between 1 and {most}{offline}", field="timeout_ms")
    return int(wanted)


def _check_count(vfm: VfmSpec, inputs: Sequence[Any], n: int) -> None:
    if not isinstance(inputs, list | tuple):
        raise InvalidInput(f"inputs must be a list, not {type(inputs).__name__}", field="inputs")
    if not inputs:
        raise InvalidInput("inputs is empty; send at least one", field="inputs")
    most = min(MAX_INPUTS, vfm.limits.max_pending)
    if n > 1 and n * len(inputs) > most:
        raise TooLarge(f"{n * len(inputs)} texts in one call, at most {most} are taken; lower n", field="n")
    if len(inputs) > MAX_INPUTS:
        raise TooLarge(
            f"{len(inputs)} inputs in one call, at most {MAX_INPUTS} are taken; split the call", field="inputs"
        )
    if len(inputs) > vfm.limits.max_pending:
        limit = vfm.limits.max_pending
        raise TooLarge(f"{len(inputs)} inputs, the queue of {vfm.name!r} holds {limit}; split the call", field="inputs")


# --- parameters -------------------------------------------------------------------------------------------------------


class _CallParams(NamedTuple):
    """Checked parameters of a call. `params`: what travels; `tokens`: of each text that is to come, at most; `draws`: each text
    needs a seed."""

    params: dict[str, Any]
    tokens: int = 0
    draws: bool = False


def _parse_params(vfm: VfmSpec, kind: type[P], params: dict[str, Any]) -> P:
    """Parse parameters as `kind`, telling misspelt ones from those that only other kinds of vFMs take."""
    if isinstance(params, dict):
        own = {field.alias or name for name, field in kind.model_fields.items()}
        if foreign := [name for name in params if name in _ANY_PARAMS - own]:
            raise _inapplicable(vfm, foreign[0])
    return parse(kind, params)


def _inapplicable(vfm: VfmSpec, name: str) -> InvalidInput:
    kinds = " and ".join(sorted(vfm.kinds))
    article = "an" if kinds[0] in "aeiou" else "a"
    return InvalidInput(f"{name} means nothing to {vfm.name!r}, which is {article} {kinds} vFM", field=name)


def _params(vfm: VfmSpec, params: dict[str, Any]) -> _CallParams:
    checked = _parse_params(vfm, Params, params)
    for name, kinds in (("dimensions", {"embedding"}), ("top_k", {"classification"})):
        value = getattr(checked, name)
        if value is not None and not vfm.kinds & kinds:
            raise _inapplicable(vfm, name)
        if value is not None and not 1 <= value <= INT_MAX:
            raise InvalidInput(f"{name} must be between 1 and {INT_MAX}", field=name)
    return _CallParams(checked.model_dump(exclude_defaults=True))


def _generation_params(vfm: VfmSpec, head: Generation, params: dict[str, Any]) -> _CallParams:
    checked = _parse_params(vfm, GenerationParams, params)
    wire = checked.model_dump(exclude_defaults=True, by_alias=True)
    # The vFM and the model may have other defaults of these.
    wire |= {name: getattr(checked, name) for name in SAMPLING if name in checked.model_fields_set}
    if checked.schema_ is not None:
        wire["schema"] = _plain("schema", checked.schema_)
    if checked.chat_template_kwargs:
        wire["chat_template_kwargs"] = _plain("chat_template_kwargs", checked.chat_template_kwargs)
    most = checked.max_tokens or head.max_tokens
    if checked.min_tokens > most:
        raise InvalidInput(
            f"min_tokens is {checked.min_tokens} and max_tokens {most}; lower the first or raise the other",
            field="min_tokens",
        )
    needs_seed = checked.temperature > 0 and checked.seed is None
    return _CallParams(wire, most, needs_seed)


def _seed(checked: _CallParams, k: int, name: str) -> dict[str, int]:
    """Return the parameter `seed` of the k-th text of an input, if it has one."""
    if checked.draws:
        return {"seed": derive_seed(name)}
    return {"seed": nth_seed(checked.params["seed"], k)} if "seed" in checked.params else {}


def _plain(name: str, value: Any) -> Any:
    """Return a schema, or other JSON of a parameter, as JSON has it, so that whoever reads it finds nothing else in it."""
    try:
        plain = json.loads(_short_json(name, value))
        packb([{name: plain}])
    except (TypeError, ValueError, RecursionError) as e:
        raise InvalidInput(f"{name}: not JSON that can travel ({e})", field=name) from None
    return plain


def _short_json(name: str, value: Any) -> str:
    """Write a parameter as JSON, no further than it may be long. Raises `TooLarge`, or what the encoder raises."""
    parts, size = [], 0
    for part in json.JSONEncoder(allow_nan=False).iterencode(value):
        size += len(part)
        if size > MAX_SCHEMA_BYTES:
            raise TooLarge(f"the {name} has more than {MAX_SCHEMA_BYTES} bytes; simplify it", field=name)
        parts.append(part)
    return "".join(parts)
