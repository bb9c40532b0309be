"""Parameters of a call to a generating vFM: how a text is generated. Names and meanings are OpenAI's and transformers'."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, FiniteFloat, StringConstraints, ValidationInfo, field_validator

from fmplex_broker.specs.schema import Several, Spec

_INT64 = 2**63 - 1
MAX_STOPS = 16
MAX_LOGPROBS = 20
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _one_or_several(value: Any) -> Any:
    """Take one text for a list of it, and leave out empty ones: programs send them where they mean none."""
    if isinstance(value, str):
        value = (value,)
    return tuple(text for text in value if text != "") if isinstance(value, list | tuple) else value


# Ranges and forms of parameters that a call, a vFM and the model's own files may set.
Stops = Annotated[Several[Stop], BeforeValidator(_one_or_several), Field(max_length=MAX_STOPS)]
StopTokens = Annotated[Several[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(max_length=MAX_STOPS)]
Temperature = Annotated[FiniteFloat, Field(ge=0, le=100)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
TopK = Annotated[int, BeforeValidator(lambda value: 0 if value == -1 else value), Field(ge=0, le=_INT64)]  # vLLM's -1
RepetitionPenalty = Annotated[FiniteFloat, Field(gt=0, le=100)]
# What the model's generation_config.json may say of sampling, a vFM otherwise, and a call otherwise again.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# What a template is called with in any case.
_OF_TEMPLATES = frozenset({
    "messages", "conversations", "conversation", "tools", "documents", "chat_template", "tokenize",
    "return_assistant_tokens_mask", "continue_final_message", "add_generation_prompt",
})  # fmt: skip


class GenerationParams(Spec):
    """Parameters of a call to a generating vFM. `temperature` 0 takes the most likely token always (greedy); `top_k` 0 (or -1),
    `top_p` 1 and `min_p` 0 filter nothing; `repetition_penalty` 1 (as transformers has it), `presence_penalty` 0 and
    `frequency_penalty` 0 (as OpenAI has them) change nothing. Where a call leaves out one of `SAMPLING`, the vFM's head or the
    model's generation_config.json may say something else than the default here.

    `max_tokens`: what the vFM says if absent; `min_tokens`: no end and no stop before so many; `seed`: the same seed gives the
    same text, drawn at enqueue if absent; `stop`: texts before which the text ends (one, or several), special tokens among them;
    `stop_token_ids`: tokens that end it beside the model's and the vFM's own, which `ignore_eos` turns off;
    `skip_special_tokens`: leave special tokens out of the text; `logprobs`: how many of the best tokens to report at each place
    (0: of the chosen one only); `schema`: a JSON schema that the text has to match; `strict`: refuse one of which a part cannot
    be kept, instead of leaving that part out; `stream`: send the text as it comes.

    Of the prompt: `add_special_tokens`: those that the tokenizer puts around texts (absent: around texts, not around chats, whose
    template writes them); `add_generation_prompt`: end a chat with the beginning of an answer (absent: unless the next is true);
    `continue_final_message`: go on with its last message; `chat_template_kwargs`: variables of the chat template.
    """

    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    min_tokens: int = Field(default=0, ge=0, le=1_000_000)
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    top_k: TopK = 0
    min_p: Share = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: FiniteFloat = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: FiniteFloat = Field(default=0.0, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-_INT64, le=_INT64)
    stop: Stops = ()
    stop_token_ids: StopTokens = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool = False
    stream: bool = False
    add_special_tokens: bool | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("schema_")
    @classmethod
    def _can_end(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is not None and info.data.get("ignore_eos"):
            raise ValueError("a text that has to match a schema ends where the schema does; leave out ignore_eos")
        return value

    @field_validator("add_generation_prompt")
    @classmethod
    def _goes_on_or_begins(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("continue_final_message"):
            raise ValueError(
                "the last message goes on, or an answer begins; leave out one of it and continue_final_message"
            )
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _variables(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OF_TEMPLATES & value.keys()):
            raise ValueError(f"{taken[0]} is no variable of a chat template; leave it out here")
        return value


def nth_seed(seed: int, n: int) -> int:
    """Return the seed of a prompt's n-th text, where the first has `seed`: they count up, and begin anew behind the greatest."""
    return (seed + n + _INT64) % (2 * _INT64 + 1) - _INT64


def derive_seed(name: str) -> int:
    """Derive the seed of a text that was asked for without one from a name; the same name gives the same seed."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()) >> 1
