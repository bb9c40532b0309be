"""Bodies of the HTTP API. An unknown key is a 422 that names it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fmplex_broker.specs.vfm import VfmSpec


class Body(BaseModel):
    """The base of all bodies: an unknown key is an error that names it."""

    model_config = ConfigDict(extra="forbid")


class InferBody(Body):
    """The body of a call. `inputs`: one job each: a text, `{"text", "text_pair"}`, `{"input_ids"}` or (msgpack)
    `{"inputs_embeds"}`."""

    inputs: list[Any]
    params: dict[str, Any] = Field(default_factory=dict)
    timeout_ms: float | None = None
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=256)


class EmbeddingsBody(Body):
    """The body of OpenAI's embeddings request; `model` is a vFM with an embedding head."""

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None


class DeployBody(Body):
    """The body that deploys a vFM without files. One with files is sent as an archive instead."""

    spec: VfmSpec


class RollBackBody(Body):
    """The body of a rollback. `version`: one that served before; by default the last one."""

    version: str | None = None
