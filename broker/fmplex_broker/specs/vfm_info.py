"""A vFM as the API and the SDK show it."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from fmplex_broker.specs.heads import PROMPTS, Head, InputSpec
from fmplex_broker.specs.schema import Spec
from fmplex_broker.specs.vfm import Limits, Slo


class PastVersion(Spec):
    """A `version` that served before, until `until_ms` (server time)."""

    version: str
    until_ms: int


class Refusal(Spec):
    """Why a version was refused: the `code` of the error, its `message`, and the `field` at fault if one is known."""

    code: str
    message: str
    field: str | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class VfmInfo(Spec):
    """A vFM as `client.vfms` gives it and `GET /v1/vfms/{name}` answers it.

    `name`; `backbone`: its name; `status`: validating, serving, stale (deployed for other weights than the fleet hosts), rejected
    or draining; `version`: the one that serves, None if none has yet; `generation`: grows with every change; `candidate`: the
    version on offer; `error`: why the last one offered was refused; `past`: versions that served before, newest first.

    Of the version that serves, else of the one on offer: `head` (a single one) or `heads` by name, `input` (its templates),
    `weight`, `limits` and `slo`; None when there is neither.
    """

    name: str
    backbone: str
    status: str
    version: str | None = None
    generation: int = 0
    candidate: str | None = None
    error: Refusal | None = None
    past: tuple[PastVersion, ...] = ()
    head: Head | None = None
    heads: dict[str, Head] | None = None
    input: InputSpec | None = None
    weight: float | None = None
    limits: Limits | None = None
    slo: Slo | None = None

    @classmethod
    def read(cls, wire: object) -> VfmInfo:
        """Read a vFM as it travels, `wire`; keys that only a newer gateway knows are left out. Raises `ValidationError`."""
        return cls.model_validate(wire, extra="ignore")

    def plain(self, *, prompts: bool = True) -> dict[str, Any]:
        """Return the vFM in plain values, as it travels; without `prompts`, not what its team has written as such."""
        told = self.model_dump(mode="json")
        return told if prompts else _without_prompts(told)


def _without_prompts(told: dict[str, Any]) -> dict[str, Any]:
    """Leave `PROMPTS` out of the heads and the input, and the message of an error about one, which may quote it."""

    def rest(part: dict[str, Any] | None) -> dict[str, Any] | None:
        return part and {key: value for key, value in part.items() if key not in PROMPTS}

    heads = told["heads"] and {name: rest(head) for name, head in told["heads"].items()}
    error = told["error"]
    if error is not None and str(error.get("field") or "").rpartition(".")[2] in PROMPTS:
        error = {**error, "message": "a prompt was refused; ask those who deploy this vFM"}
    return {**told, "head": rest(told["head"]), "heads": heads, "input": rest(told["input"]), "error": error}
