"""The encoder engine: every job is one whole encode, and a pass is one packed row through the backbone.

`step` shows the machine: order the texts, lay out the row, encode, run the heads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.engine.isolation import PassUnits, run_isolated
from fmplex_worker.heads.running import run_heads
from fmplex_worker.packed.grouping import group_from
from fmplex_worker.packed.row import TokenSpan, pack, packed_order
from fmplex_worker.protocol import Capacity, EngineInfo, Fitted, Outcome, Prepared, Work
from fmplex_worker.versions import Version, Versions
from fmplex_worker.workloads.encoding.preparing import EncodeJob, EncodePreparer


class EncoderEngine:
    """`fmplex_worker.protocol.Engine` for encoders, and for decoders used as encoders."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._versions = Versions(backbone)
        self._preparer = EncodePreparer(backbone, self._versions)
        self._group_from = group_from(backbone.device, getattr(torch, backbone.spec.dtype), backbone.hidden)
        self._units = PassUnits(backbone.spec.pass_units, backbone.device)

    @classmethod
    def open(cls, spec: BackboneSpec, device: str = "auto") -> EncoderEngine:
        """Load the backbone. Raises `InvalidInput` that names the key of the fleet file to change."""
        return cls(load_backbone(spec, device))

    @property
    def info(self) -> EngineInfo:
        b = self._backbone
        return EngineInfo(b.spec.name, "text", b.hidden, b.max_tokens, str(b.device), b.memory_bytes)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self._units.now)

    @property
    def loaded(self) -> Mapping[str, int]:
        return self._versions.sizes()

    @property
    def device_bytes(self) -> int:
        return self._backbone.device_bytes

    def aim(self, units: int) -> None:
        """A text is encoded whole, however short passes are."""

    def fit(self, package: Package) -> Version:
        return self._versions.fit(package)

    def load(self, fitted: Fitted) -> None:
        self._versions.load(cast(Version, fitted))

    def unload(self, digest: str) -> None:
        self._versions.unload(digest)

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        return cast(list[Prepared | FmplexError], self._preparer.prepare(batch))

    def drop(self, prepared: Prepared) -> None:
        """Nothing is held between passes: every job is done in one."""

    def step(self, work: Sequence[Work]) -> Outcome:
        begun = time.perf_counter()
        self._units.regrow()
        jobs = [cast(EncodeJob, item.prepared) for item in work]
        results = run_isolated(jobs, self._run, self._units.halve) if jobs else []
        return Outcome(time.perf_counter() - begun, results)

    @torch.inference_mode()
    def _run(self, jobs: Sequence[EncodeJob]) -> list[Any]:
        """One pass. Results in the order of `jobs`; raises whatever goes wrong."""
        owners = [(i, text) for i, job in enumerate(jobs) for text in job.texts]
        owned = [TokenSpan(text.tokens, jobs[i].version.adapter) for i, text in owners]
        order = packed_order(owned)
        row = pack([owned[at] for at in order], self._backbone.device, self._group_from)
        hidden = self._backbone.encode(row, [owners[at][1] for at in order])
        place = {at: i for i, at in enumerate(order)}
        places: list[tuple[int, ...]] = [()] * len(jobs)
        for at, (i, _) in enumerate(owners):
            places[i] += (place[at],)
        return run_heads(hidden, *row.own(), [job.ask for job in jobs], places)
