"""Deployments as values: backbones, offered versions, and vFMs as the fleet sees them. Pure."""

from __future__ import annotations

import json
from typing import Any

from fmplex_broker.errors import VfmClosed
from fmplex_broker.schema import Spec
from fmplex_broker.specs import VfmSpec


class BackboneInfo(Spec):
    """What a worker tells of the backbone it hosts. Sizes: `hidden` = width of the hidden state, `max_tokens` = longest text."""

    name: str
    model: str
    modality: str = "text"
    hidden: int
    max_tokens: int


class Deployment(Spec):
    """A version as it is offered to workers: the spec and the package folder (None: the bare backbone)."""

    spec: VfmSpec
    package: str | None = None


class VfmStatus(Spec):
    """A vFM as the fleet sees it. `status`: validating | serving | rejected | draining; `error`: why the last version offered
    was refused."""

    name: str
    backbone: str
    status: str
    version: str
    generation: int
    deployment: Deployment | None = None
    candidate: tuple[str, Deployment] | None = None
    error: dict[str, Any] | None = None

    @property
    def spec(self) -> VfmSpec:
        known = self.deployment or (self.candidate[1] if self.candidate else None)
        if known is None:
            raise VfmClosed(f"vFM {self.name!r} has no accepted version; deploy one")
        return known.spec

    def describe(self) -> dict[str, Any]:
        """The vFM as the API and the SDK show it; plain values."""
        known = self.deployment or (self.candidate[1] if self.candidate else None)
        spec = known.spec if known else None
        return {
            "name": self.name,
            "backbone": self.backbone,
            "status": self.status,
            "version": self.version or None,
            "generation": self.generation,
            "candidate": self.candidate[0] if self.candidate else None,
            "error": self.error,
            "package": known.package if known else None,
            "heads": {k: h.model_dump(mode="json", exclude_defaults=True) | {"kind": h.kind} for k, h in spec.outputs.items()}
            if spec
            else None,
            "weight": spec.weight if spec else None,
            "limits": spec.limits.model_dump() if spec else None,
            "slo": spec.slo.model_dump() if spec else None,
        }


def status_of(
    name: str, backbone: str, record: bytes, spec: bytes | None, offered: bytes | None, error: bytes | None
) -> VfmStatus:
    """From a vFM's fields in the hash `vfms`: its record (see `fmplex_broker.keys`), `:spec`, `:next` and `:error`."""
    status, version, generation, *_ = record.decode().split("|")
    candidate = None
    if offered:
        digest, _, body = offered.partition(b"|")
        candidate = (digest.decode(), Deployment.model_validate_json(body))
    return VfmStatus(
        name=name,
        backbone=backbone,
        status=status,
        version=version,
        generation=int(generation),
        deployment=Deployment.model_validate_json(spec) if spec else None,
        candidate=candidate,
        error=json.loads(error) if error else None,
    )
