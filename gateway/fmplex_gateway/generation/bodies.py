"""Bodies of /v1/chat/completions and /v1/completions, and what they mean in terms of `GenerationParams`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fmplex_broker.errors import InvalidInput
from fmplex_gateway.generation.fields import BestOf, Content, MediumOnly, Refused, Role, Stops, Tools
from fmplex_gateway.schemas import NO_PROMPTS, Body, Items, Prompts, as_inputs

_MAX_CHOICES = 128
# Parameters with the same name and meaning in the body and in `GenerationParams`.
_SAME_NAMES = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop",
    "stop_token_ids", "ignore_eos", "min_tokens", "skip_special_tokens", "add_special_tokens",
)  # fmt: skip


class _Lenient(Body):
    """A body in which null means the same as a missing field."""

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class ChatMessage(_Lenient):
    """A message of a chat. Chat templates see role, content and `reasoning_content`. `name` and keys that nobody knows have no
    effect: other servers add theirs to the answers that programs send back."""

    model_config = ConfigDict(extra="ignore")

    role: Role
    tool_calls: Tools = None  # before content, which is missing where there are some
    function_call: Tools = None
    content: Content
    reasoning_content: str | None = None
    reasoning: Any = None  # newer servers' name of it
    name: str | None = None
    audio: Refused = None
    refusal: Refused = None
    annotations: Refused = None

    def plain(self) -> dict[str, str]:
        """Return role and content as a job takes them; a developer is the system."""
        message = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        thought = self.reasoning_content or self.reasoning
        return message | ({"reasoning_content": thought} if thought and isinstance(thought, str) else {})


class StreamOptions(_Lenient):
    """The options of a stream. `include_obfuscation` is accepted and has no effect."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _NamedSchema(_Lenient):
    name: str = ""
    description: str = ""
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool = False  # OpenAI's default


class ResponseFormat(_Lenient):
    """The form that a text must have. Not a union by `type`: errors would name the chosen part as if it were a key."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _NamedSchema | None = Field(default=None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _matches_type(cls, value: _NamedSchema | None, info: ValidationInfo) -> _NamedSchema | None:
        wanted = info.data.get("type") == "json_schema"
        if wanted and value is None:
            raise PydanticCustomError("missing", 'type "json_schema" needs it: an object with name and schema')
        if value is not None and not wanted and "type" in info.data:
            raise PydanticCustomError("format", 'it goes with type "json_schema" only')
        return value

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """JSON schema that the text must match; None: any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None

    @property
    def strict(self) -> bool:
        """True if the schema is to be kept in every part, or refused."""
        return self.json_schema is not None and self.json_schema.strict


class TextBody(_Lenient):
    """The fields that chat and completions share. The ranges of sampling parameters are checked on admission."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int = Field(default=1, ge=1, le=_MAX_CHOICES)
    stop: Stops | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: ResponseFormat | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Not OpenAI's; the openai package sends them in `extra_body`.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    # Accepted, without effect: they say who asks.
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
        """True if the last event of a stream is to count tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def length_field(self) -> str:
        """Name of the caller's field that says `max_tokens`."""
        return "max_tokens"

    def inputs(self) -> list[Any]:
        """Return the inputs of the jobs, one a prompt."""
        raise NotImplementedError

    def logprob_count(self) -> int | None:
        """Return how many of the best tokens to report at each position; None: no log-probabilities. Raises `InvalidInput`."""
        raise NotImplementedError

    def token_limit(self) -> int | None:
        """Return how many tokens to generate at most; None: the vFM's default. Raises `InvalidInput`."""
        return self.max_tokens

    def params(self) -> dict[str, Any]:
        """Return the parameters as admission takes them. Raises `InvalidInput` for what does not go together."""
        if self.wants_usage and not self.stream:
            raise InvalidInput("stream_options mean nothing without stream", field="stream_options")
        schema = self.response_format.output_schema if self.response_format is not None else None
        more = {
            "max_tokens": self.token_limit(),
            "logprobs": self.logprob_count(),
            "schema": schema,
            "strict": (self.response_format is not None and self.response_format.strict) or None,
            "stream": self.stream or None,
        }
        params = {name: getattr(self, name) for name in _SAME_NAMES} | more
        return {name: value for name, value in params.items() if value is not None}


class ChatBody(TextBody):
    """The body of /v1/chat/completions."""

    messages: Items[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    # Not OpenAI's; they belong to chat templates.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
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
    reasoning_effort: MediumOnly = None
    verbosity: MediumOnly = None
    web_search_options: Refused = None

    @property
    def length_field(self) -> str:
        """Name of the caller's field that says `max_tokens`; see `TextBody.length_field`."""
        newer = self.max_tokens is None and self.max_completion_tokens is not None
        return "max_completion_tokens" if newer else "max_tokens"

    def inputs(self) -> list[Any]:
        """Return the messages as the only input; see `TextBody.inputs`."""
        return [{"messages": [message.plain() for message in self.messages]}]

    def logprob_count(self) -> int | None:
        """Read `logprobs` and `top_logprobs`; see `TextBody.logprob_count`."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidInput("top_logprobs means nothing without logprobs", field="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def params(self) -> dict[str, Any]:
        """Add those of the chat template; see `TextBody.params`."""
        named = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")
        return super().params() | {name: value for name in named if (value := getattr(self, name)) is not None}

    def token_limit(self) -> int | None:
        """Read `max_tokens` or `max_completion_tokens`; see `TextBody.token_limit`."""
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise InvalidInput(
                "max_tokens and max_completion_tokens are the same; send one of them", field="max_tokens"
            )
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens


def _some(prompts: list[Any]) -> list[Any]:
    if not prompts:
        raise PydanticCustomError("prompt", NO_PROMPTS)
    return prompts


class CompletionBody(TextBody):
    """The body of /v1/completions."""

    prompt: Annotated[Prompts, AfterValidator(_some)]
    logprobs: Annotated[int | None, BeforeValidator(lambda value: None if value is False else value)] = None
    best_of: BestOf = None
    echo: Refused = None
    suffix: Refused = None

    def inputs(self) -> list[Any]:
        """Return one input a prompt; see `TextBody.inputs`."""
        return as_inputs(self.prompt)

    def logprob_count(self) -> int | None:
        """Read `logprobs`; see `TextBody.logprob_count`."""
        return self.logprobs
