"""Deployments as values: backbones, and vFMs as the fleet sees them. Pure."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from fmplex_broker.errors import VfmClosed
from fmplex_broker.specs.heads import PROMPTS
from fmplex_broker.specs.schema import Spec
from fmplex_broker.specs.vfm import VfmSpec


class BackboneInfo(Spec):
    """A worker's description of the backbone it hosts. Sizes: `hidden` = width of the hidden state, `max_tokens` = longest
    text."""

    name: str
    model: str
    modality: str = "text"
    hidden: int
    max_tokens: int


class PastVersion(Spec):
    """A version that served before, until `until_ms` (server time)."""

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
    past: tuple[PastVersion, ...] = ()

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

    def describe(self, *, prompts: bool = True) -> dict[str, Any]:
        """Return the vFM as the API and the SDK show it, in plain values. A single head is `head`, several named ones are
        `heads`. `prompts` False: without what its team has written as prompts."""
        spec = self.known.model_dump(mode="json") if self.known else {}
        error = self.error
        if not prompts:
            spec, error = _without_prompts(spec), _without_quotes(error)
        return {
            "name": self.name,
            "backbone": self.backbone,
            "status": self.status,
            "version": self.version or None,
            "generation": self.generation,
            "candidate": self.candidate[0] if self.candidate else None,
            "error": error,
            "past": [p.model_dump() for p in self.past],
            **{key: spec.get(key) for key in ("head", "heads", "input", "weight", "limits", "slo")},
        }


def _without_prompts(spec: dict[str, Any]) -> dict[str, Any]:
    """Leave `PROMPTS` out of the heads and the input of a spec; one that is empty stays empty."""

    def rest(part: dict[str, Any] | None) -> dict[str, Any] | None:
        return part and {key: value for key, value in part.items() if key not in PROMPTS}

    heads = {name: rest(head) for name, head in spec.get("heads", {}).items()}
    return spec and {**spec, "head": rest(spec["head"]), "heads": heads, "input": rest(spec["input"])}


def _without_quotes(error: dict[str, Any] | None) -> dict[str, Any] | None:
    """Leave out the message of an error about a prompt, which may quote it."""
    if error is None or str(error.get("field", "")).rpartition(".")[2] not in PROMPTS:
        return error
    return {**error, "message": "a prompt was refused; ask those who deploy this vFM"}


class VfmRecord(NamedTuple):
    """A vFM's record in the hash `vfms`: `status|digest|generation|cap|weight|rate|pass_ms` (see
    `fmplex_broker.streams.keys`)."""

    status: str
    version: str
    generation: int
    weight: float

    @classmethod
    def parse(cls, record: bytes) -> VfmRecord:
        """Read what is needed here of a record; the scripts alone need the cap, rate and pass length."""
        status, version, generation, _, weight, *_ = record.decode().split("|")
        return cls(status, version, int(generation), float(weight))


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
) -> VfmStatus:
    """Read a vFM's status from the values of `STATUS_FIELDS`."""
    now = VfmRecord.parse(record)
    candidate = None
    if offered:
        digest, _, body = offered.partition(b"|")
        candidate = (digest.decode(), VfmSpec.model_validate_json(body))
    lines = [line.split() for line in (past or b"").decode().splitlines()]
    return VfmStatus(
        name=name,
        backbone=backbone,
        status=now.status,
        version=now.version,
        generation=now.generation,
        serving=VfmSpec.model_validate_json(spec) if spec else None,
        candidate=candidate,
        error=json.loads(error) if error else None,
        past=tuple(PastVersion(version=digest, until_ms=int(ms)) for digest, ms in lines),
    )
