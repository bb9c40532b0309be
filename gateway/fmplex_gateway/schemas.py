"""Bodies of the HTTP API. An unknown key is a 422 that names it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.schema import Name, Spec
from fmplex_broker.specs.vfm import VfmSpec

T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True)]  # pydantic makes an error of every wrong item, and one is shown


def _prompts(value: Any) -> Any:
    """Return texts as a list, one or many; what is in it is checked on admission."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        if value and type(value[0]) is int:
            return [value]
        if all(isinstance(prompt, str | list) for prompt in value):
            return value
    raise PydanticCustomError("prompt", NO_PROMPTS)


NO_IDS = (
    "these are token ids, and those of another model's tokenizer would give wrong vectors: send texts (LangChain: "
    "OpenAIEmbeddings(check_embedding_ctx_length=False)). If they are of the backbone's own vocabulary, {vfm!r} takes them with "
    "token_ids = true under [input] of its vfm.toml"
)
NO_PROMPTS = "must be a text, token ids, or a list of either"
Prompts = Annotated[list[Any], BeforeValidator(_prompts)]


def as_inputs(prompts: list[Any]) -> list[Any]:
    """Return the inputs of the jobs, one a prompt."""
    return [prompt if isinstance(prompt, str) else {"input_ids": prompt} for prompt in prompts]


class Body(Spec):
    """The base of all bodies: an unknown key is an error that names it."""


class InferBody(Body):
    """The body of a call. `inputs`: one job each: a text, `{"text", "text_pair"}`, `{"input_ids"}` or (msgpack)
    `{"inputs_embeds"}`."""

    inputs: list[Any]
    params: dict[str, Any] = Field(default_factory=dict)
    timeout_ms: float | None = None
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=256)


class EmbeddingsBody(Body):
    """The body of OpenAI's embeddings request; `model` is a vFM with an embedding head. `truncate`: cut a text that is too long
    instead of refusing it (default: as the vFM says)."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None
    truncate: bool | None = None

    def params(self, vfm: VfmSpec) -> dict[str, Any]:
        """Return the parameters of the jobs. Raises `InvalidInput` for token ids of a vFM that takes none."""
        ids = any(not isinstance(text, str) for text in self.input)
        if ids and not vfm.input.token_ids:
            raise InvalidInput(NO_IDS.format(vfm=vfm.name), field="input")
        given = {"dimensions": self.dimensions, "truncate": self.truncate, "add_special_tokens": ids or None}
        return {name: value for name, value in given.items() if value is not None}


class DeployBody(Body):
    """The body that deploys a vFM without files, by its `spec`, or a `checkpoint` of a tuning job under a `name`. Files that are
    not in the fleet yet are sent as an archive instead."""

    spec: VfmSpec | None = None
    checkpoint: str | None = None
    name: Name | None = None

    def check(self) -> None:
        """Raise `InvalidInput` unless the body says one thing to deploy."""
        if self.spec is None and self.checkpoint is None:
            raise InvalidInput("required, unless a checkpoint of a tuning job is deployed", field="spec")
        if self.spec is not None and self.checkpoint is not None:
            raise InvalidInput("give it, or a spec, but not both", field="checkpoint")
        if self.spec is not None and self.name is not None:
            raise InvalidInput("the spec has a name; leave this one out", field="name")


class RollBackBody(Body):
    """The body of a rollback. `version`: one that served before; by default the last one."""

    version: str | None = None
