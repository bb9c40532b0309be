"""Parameters of a call to a generating vFM: how a text is generated. Names and meanings are OpenAI's and transformers'."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, StringConstraints, ValidationInfo, field_validator

from fmplex_broker.specs.schema import Several, Spec

_INT64 = 2**63 - 1
MAX_STOPS = 16
MAX_LOGPROBS = 20
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class GenerationParams(Spec):
    """Parameters of a call to a generating vFM. `temperature` 0 takes the most likely token always (greedy); `top_k` 0, `top_p`
    1 and `min_p` 0 filter nothing; `repetition_penalty` 1 (as transformers has it), `presence_penalty` 0 and `frequency_penalty`
    0 (as OpenAI has them) change nothing.

    `max_tokens`: what the vFM says if absent; `seed`: the same seed gives the same text, drawn at enqueue if absent; `stop`:
    texts before which the text ends (one, or several); `stop_token_ids`: tokens that end it beside the backbone's own, which
    `ignore_eos` turns off; `logprobs`: how many of the best tokens to report at each place (0: of the chosen one only);
    `schema`: a JSON schema that the text has to match; `strict`: refuse one of which a part cannot be kept, instead of leaving
    that part out; `stream`: send the text as it comes.
    """

    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: FiniteFloat = Field(default=1.0, ge=0, le=100)
    top_p: FiniteFloat = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=_INT64)
    min_p: FiniteFloat = Field(default=0.0, ge=0, le=1)
    repetition_penalty: FiniteFloat = Field(default=1.0, gt=0, le=100)
    presence_penalty: FiniteFloat = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: FiniteFloat = Field(default=0.0, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-_INT64, le=_INT64)
    stop: Several[Stop] = Field(default=(), max_length=MAX_STOPS)
    stop_token_ids: Several[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(default=(), max_length=MAX_STOPS)
    ignore_eos: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool = False
    stream: bool = False

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("schema_")
    @classmethod
    def _can_end(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is not None and info.data.get("ignore_eos"):
            raise ValueError("a text that has to match a schema ends where the schema does; leave out ignore_eos")
        return value


def nth_seed(seed: int, n: int) -> int:
    """Return the seed of a prompt's n-th text, where the first has `seed`: they count up, and begin anew behind the greatest."""
    return (seed + n + _INT64) % (2 * _INT64 + 1) - _INT64


def derive_seed(name: str) -> int:
    """Derive the seed of a text that was asked for without one from a name; the same name gives the same seed."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()) >> 1
