"""Bodies of /v1/chat/completions and /v1/completions, and what they mean in terms of `GenerationParams`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fmplex_broker.errors import InvalidInput
from fmplex_gateway.schemas import Body

_MOST_TEXTS = 128
# These have the same name and meaning here and there.
_SAME = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop",
    "stop_token_ids", "ignore_eos",
)  # fmt: skip
# What asks for nothing may stay: programs send OpenAI's defaults.
_NOTHING: tuple[Any, ...] = (False, "", [], {}, ["text"], "none", "auto", "default")


def _refuse(value: Any) -> Any:
    if value in _NOTHING:
        return None
    raise PydanticCustomError("unsupported", "FMplex does not have this part of OpenAI's API; leave it out")


def _refuse_tools(value: Any) -> Any:
    if value in _NOTHING:
        return None
    raise PydanticCustomError("unsupported", "FMplex does not have this part of OpenAI's API: tools are not there yet")


def _speaker(value: Any) -> Any:
    return _refuse_tools(value) if value in ("tool", "function") else value


def _all_of_them(value: Any, info: ValidationInfo) -> Any:
    """The best of as many as are told; 1 is OpenAI's default."""
    return None if value in (1, info.data.get("n")) else _refuse(value)


def _joined(value: Any) -> Any:
    """A message's content as one text: its parts are put on lines of their own."""
    if not isinstance(value, list):
        return value
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise PydanticCustomError("content", "only text parts are taken, not {kind}", {"kind": str(kind)})
    return "\n".join(part["text"] for part in value)


def _prompts(value: Any) -> Any:
    """One or many; what is in a list of token ids is looked at later."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if type(value[0]) is int:
            return [value]
        if all(isinstance(prompt, str | list) for prompt in value):
            return value
    raise PydanticCustomError("prompt", "must be a text, token ids, or a list of either")


Refused = Annotated[Any, AfterValidator(_refuse)]  # OpenAI knows it, FMplex does not
Tools = Annotated[Any, AfterValidator(_refuse_tools)]
Degree = Annotated[Any, AfterValidator(lambda value: None if value == "medium" else _refuse(value))]
Stops = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Role = Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_speaker)]


class _Lenient(Body):
    """A null is as good as nothing, whatever the field."""

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class ChatMessage(_Lenient):
    """`name` is taken and has no effect: chat templates know roles only."""

    role: Role
    tool_calls: Tools = None  # before content, which is missing where there are some
    function_call: Tools = None
    content: Annotated[str, BeforeValidator(_joined)]
    name: str | None = None
    audio: Refused = None
    refusal: Refused = None
    annotations: Refused = None

    def plain(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(_Lenient):
    """`include_obfuscation` is taken and has no effect."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _NamedSchema(_Lenient):
    name: str = ""
    description: str = ""
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool = True  # it always is


class Format(_Lenient):
    """Not a union by `type`: errors would name the chosen part as if it were a key."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _NamedSchema | None = Field(default=None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _of_its_type(cls, value: _NamedSchema | None, info: ValidationInfo) -> _NamedSchema | None:
        wanted = info.data.get("type") == "json_schema"
        if wanted and value is None:
            raise PydanticCustomError("missing", 'type "json_schema" needs it: an object with name and schema')
        if value is not None and not wanted and "type" in info.data:
            raise PydanticCustomError("format", 'it goes with type "json_schema" only')
        return value

    @property
    def asked(self) -> dict[str, Any] | None:
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class TextBody(_Lenient):
    """What chat and completions share. The ranges of what goes into sampling are checked where they are known, on admission."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int = Field(default=1, ge=1, le=_MOST_TEXTS)
    stop: Stops | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: Format | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Not OpenAI's; the openai package sends them in `extra_body`.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    # Taken, without effect: they say who asks.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = None
    # Refused by name.
    logit_bias: Refused = None
    service_tier: Refused = None
    store: Refused = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def length_field(self) -> str:
        """The caller's word for `max_tokens`."""
        return "max_tokens"

    def inputs(self) -> list[Any]:
        raise NotImplementedError

    def best(self) -> int | None:
        """How many of the best tokens are to be told at each place; None: nothing at all. Raises `InvalidInput`."""
        raise NotImplementedError

    def longest(self) -> int | None:
        return self.max_tokens

    def params(self) -> dict[str, Any]:
        """As admission takes them. Raises `InvalidInput` for what does not go together."""
        if self.wants_usage and not self.stream:
            raise InvalidInput("stream_options mean nothing without stream", field="stream_options")
        schema = self.response_format.asked if self.response_format is not None else None
        more = {"max_tokens": self.longest(), "logprobs": self.best(), "schema": schema, "stream": self.stream or None}
        asked = {name: getattr(self, name) for name in _SAME} | more
        return {name: value for name, value in asked.items() if value is not None}


class ChatBody(TextBody):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: Tools = None
    tool_choice: Tools = None
    parallel_tool_calls: bool | None = None  # without effect: there are none
    functions: Tools = None
    function_call: Tools = None
    audio: Refused = None
    modalities: Refused = None
    moderation: Refused = None
    prediction: Refused = None
    prompt_cache_options: Refused = None
    prompt_cache_retention: Refused = None
    reasoning_effort: Degree = None
    verbosity: Degree = None
    web_search_options: Refused = None

    @property
    def length_field(self) -> str:
        newer = self.max_tokens is None and self.max_completion_tokens is not None
        return "max_completion_tokens" if newer else "max_tokens"

    def inputs(self) -> list[Any]:
        return [{"messages": [message.plain() for message in self.messages]}]

    def best(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidInput("top_logprobs means nothing without logprobs", field="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def longest(self) -> int | None:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise InvalidInput(
                "max_tokens and max_completion_tokens are the same; send one of them", field="max_tokens"
            )
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


class CompletionBody(TextBody):
    prompt: Annotated[list[Any], BeforeValidator(_prompts)]
    logprobs: Annotated[int | None, BeforeValidator(lambda value: None if value is False else value)] = None
    best_of: Annotated[Any, AfterValidator(_all_of_them)] = None
    echo: Refused = None
    suffix: Refused = None

    def inputs(self) -> list[Any]:
        return [prompt if isinstance(prompt, str) else {"input_ids": prompt} for prompt in self.prompt]

    def best(self) -> int | None:
        return self.logprobs
