"""Deployments as values: backbones, and vFMs as the fleet sees them. Pure."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from fmplex_broker.errors import VfmClosed
from fmplex_broker.specs.schema import Spec
from fmplex_broker.specs.vfm import VfmSpec


class BackboneInfo(Spec):
    """What a worker tells of the backbone it hosts. Sizes: `hidden` = width of the hidden state, `max_tokens` = longest text."""

    name: str
    model: str
    modality: str = "text"
    hidden: int
    max_tokens: int


class Past(Spec):
    """A version that served before, and until when (server time, ms)."""

    version: str
    until_ms: int


class VfmStatus(Spec):
    """A vFM as the fleet sees it. `status`: validating | serving | rejected | draining; `serving`: the spec that serves;
    `candidate`: version and spec on offer; `error`: why the last version offered was refused; `past`: newest first."""

    name: str
    backbone: str
    status: str
    version: str
    generation: int
    serving: VfmSpec | None = None
    candidate: tuple[str, VfmSpec] | None = None
    error: dict[str, Any] | None = None
    past: tuple[Past, ...] = ()

    @property
    def known(self) -> VfmSpec | None:
        """The spec that serves, else the one on offer; None when every one was refused."""
        return self.serving or (self.candidate[1] if self.candidate else None)

    @property
    def spec(self) -> VfmSpec:
        if self.known is None:
            raise VfmClosed(f"vFM {self.name!r} has no accepted version; deploy one")
        return self.known

    def describe(self) -> dict[str, Any]:
        """The vFM as the API and the SDK show it; plain values. A single head is `head`, several named ones are `heads`."""
        spec = self.known.model_dump(mode="json") if self.known else {}
        return {
            "name": self.name,
            "backbone": self.backbone,
            "status": self.status,
            "version": self.version or None,
            "generation": self.generation,
            "candidate": self.candidate[0] if self.candidate else None,
            "error": self.error,
            "past": [p.model_dump() for p in self.past],
            **{key: spec.get(key) for key in ("head", "heads", "input", "weight", "limits", "slo")},
        }


class Deployed(NamedTuple):
    """The little that a worker needs of a vFM: what serves, with which weight, and the version on offer ('': none)."""

    version: str
    weight: float
    offered: str


def deployed(record: bytes, offered: bytes | None) -> Deployed:
    """From a vFM's record and its `:next`."""
    _, version, _, _, weight, *_ = record.decode().split("|")
    return Deployed(version, float(weight), (offered or b"").partition(b"|")[0].decode())


# A vFM's fields in the hash `vfms` that make its status: its record (see `fmplex_broker.streams.keys`) and these.
STATUS_FIELDS = ("", ":spec", ":next", ":error", ":past")


def status_of(
    name: str,
    backbone: str,
    record: bytes,
    spec: bytes | None,
    offered: bytes | None,
    error: bytes | None,
    past: bytes | None,
) -> VfmStatus:
    """From the values of `STATUS_FIELDS`."""
    status, version, generation, *_ = record.decode().split("|")
    candidate = None
    if offered:
        digest, _, body = offered.partition(b"|")
        candidate = (digest.decode(), VfmSpec.model_validate_json(body))
    lines = [line.split() for line in (past or b"").decode().splitlines()]
    return VfmStatus(
        name=name,
        backbone=backbone,
        status=status,
        version=version,
        generation=int(generation),
        serving=VfmSpec.model_validate_json(spec) if spec else None,
        candidate=candidate,
        error=json.loads(error) if error else None,
        past=tuple(Past(version=digest, until_ms=int(ms)) for digest, ms in lines),
    )
