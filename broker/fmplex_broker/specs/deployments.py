"""Deployments as values: backbones, and vFMs as the fleet sees them. Pure."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from fmplex_broker.errors import VfmClosed
from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.specs.schema import Spec
from fmplex_broker.specs.versions import is_stale
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.specs.vfm_info import PastVersion, Refusal, VfmInfo


class BackboneInfo(Spec):
    """A worker's description of the backbone it hosts. Sizes: `hidden` = width of the hidden state, `max_tokens` = longest
    text. `generates`: whether it has a language-model head."""

    name: str
    model: str
    modality: str = "text"
    hidden: int
    max_tokens: int
    generates: bool = False


class VfmStatus(Spec):
    """A vFM as the fleet sees it. `status`: validating | serving | stale | rejected | draining; `serving`: the spec that serves;
    `candidate`: version and spec on offer; `error`: why the last version offered was refused; `past`: newest first. A `stale` one
    was deployed for other weights than those `hosted` (a fingerprint): it answers nothing until it is deployed again."""

    name: str
    backbone: str
    status: str
    version: str
    generation: int
    serving: VfmSpec | None = None
    candidate: tuple[str, VfmSpec] | None = None
    error: dict[str, Any] | None = None
    past: tuple[PastVersion, ...] = ()
    hosted: str = ""

    @property
    def known(self) -> VfmSpec | None:
        """The spec that serves, else the one on offer; None when every one was refused."""
        return self.serving or (self.candidate[1] if self.candidate else None)

    @property
    def spec(self) -> VfmSpec:
        """The spec that is `known`. Raises `VfmClosed` when there is none."""
        if self.known is None:
            raise VfmClosed(f"vFM {self.name!r} has no accepted version; deploy one")
        return self.known

    def describe(self) -> VfmInfo:
        """Return the vFM as the API and the SDK show it."""
        known, parts = self.known, ("head", "heads", "input", "weight", "limits", "slo")
        spec: dict[str, Any] = {} if known is None else {part: getattr(known, part) for part in parts}
        return VfmInfo(
            name=self.name,
            backbone=self.backbone,
            status=self.status,
            version=self.version or None,
            generation=self.generation,
            candidate=self.candidate[0] if self.candidate else None,
            error=None if self.error is None else Refusal.model_validate(self.error, extra="ignore"),
            past=self.past,
            **spec,
        )


class VfmRecord(NamedTuple):
    """A vFM's record in the hash `vfms`: `name=value` pairs joined by `|`, as the scripts write them (`prelude.lua`)."""

    status: str
    version: str
    generation: int
    weight: float

    @classmethod
    def parse(cls, record: bytes) -> VfmRecord:
        """Read what is needed here of a record; the scripts alone need the limits and the pass length."""
        named = dict(part.split("=", 1) for part in record.decode().split("|"))
        return cls(named["status"], named["version"], int(named["generation"]), float(named["weight"]))


def parse_hosted(raw: bytes | None) -> Fingerprint | None:
    """Read what the workers of a backbone host: the field `:hosted` of the hash `vfms`, `digest|description`."""
    return Fingerprint.model_validate_json(raw.partition(b"|")[2]) if raw else None


class DeployedVfm(NamedTuple):
    """The part of a vFM's status that a worker needs: what serves, with which weight, and the version on offer ('': none)."""

    version: str
    weight: float
    offered: str


def parse_deployed(record: bytes, offered: bytes | None) -> DeployedVfm:
    """Read what a worker needs from a vFM's record and its `:next`."""
    now = VfmRecord.parse(record)
    return DeployedVfm(now.version, now.weight, (offered or b"").partition(b"|")[0].decode())


# A vFM's fields in the hash `vfms` that make its status: its `VfmRecord` and these.
STATUS_FIELDS = ("", ":spec", ":next", ":error", ":past")


def parse_status(
    name: str,
    backbone: str,
    record: bytes,
    spec: bytes | None,
    offered: bytes | None,
    error: bytes | None,
    past: bytes | None,
    *,
    hosted: str = "",
) -> VfmStatus:
    """Read a vFM's status from the values of `STATUS_FIELDS`; `hosted`: the fingerprint that its backbone's workers host."""
    now = VfmRecord.parse(record)
    candidate = None
    if offered:
        version, _, body = offered.partition(b"|")
        candidate = (version.decode(), VfmSpec.model_validate_json(body))
    lines = [line.split() for line in (past or b"").decode().splitlines()]
    return VfmStatus(
        name=name,
        backbone=backbone,
        status="stale" if now.status == "serving" and is_stale(now.version, hosted) else now.status,
        version=now.version,
        generation=now.generation,
        serving=VfmSpec.model_validate_json(spec) if spec else None,
        candidate=candidate,
        error=json.loads(error) if error else None,
        past=tuple(PastVersion(version=version, until_ms=int(ms)) for version, ms in lines),
        hosted=hosted,
    )
