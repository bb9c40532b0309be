"""Bodies of the HTTP API. An unknown key is a 422 that names it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fmplex_broker.specs import VfmSpec
from fmplex_broker.streams.registry import VfmStatus


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InferBody(Body):
    """`inputs`: a list, one job each. A text, `{"text", "text_pair"}`, `{"input_ids"}` or (msgpack) `{"inputs_embeds"}`."""

    inputs: list[Any]
    params: dict[str, Any] = Field(default_factory=dict)
    timeout_ms: float | None = None
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=256)


class EmbeddingsBody(Body):
    """OpenAI's embeddings request; `model` is a vFM with an embedding head."""

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None


class DeployBody(Body):
    """A package folder that gateway and workers can both read, or the spec of a vFM without files."""

    package: str | None = None
    spec: VfmSpec | None = None


def describe(status: VfmStatus) -> dict[str, Any]:
    """A vFM as the API shows it."""
    known = status.deployment or (status.candidate[1] if status.candidate else None)
    spec = known.spec if known else None
    return {
        "name": status.name,
        "backbone": status.backbone,
        "status": status.status,
        "version": status.version or None,
        "generation": status.generation,
        "candidate": status.candidate[0] if status.candidate else None,
        "error": status.error,
        "package": known.package if known else None,
        "head": spec.head.model_dump(mode="json") if spec else None,
        "weight": spec.weight if spec else None,
        "limits": spec.limits.model_dump() if spec else None,
        "slo": spec.slo.model_dump() if spec else None,
    }
