"""The engine: jobs of any workloads, in one packed row a pass.

`step` shows the machine: every workload lays out its jobs, the backbone runs once over all of them, every workload reads what
came out. A pass changes no job before all of it has run, so a pass that failed can run again in parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from fmplex_broker.errors import FmplexError, InvalidInput, PackageRejected, VfmClosed
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.engine.isolation import PassUnits, run_isolated
from fmplex_worker.ledger import Ledger
from fmplex_worker.packed.grouping import group_from
from fmplex_worker.packed.row import pack, packed_order
from fmplex_worker.protocol import Capacity, EngineInfo, Fitted, Kind, Outcome, Prepared, Work
from fmplex_worker.training import Training, TuneOrder
from fmplex_worker.versions import Version, Versions
from fmplex_worker.workloads.base import PassOutput, PassText, PlacedWork, Workload

OpenTraining = Callable[[TuneOrder, Backbone, bytes | None], Training]


class PackedEngine:
    """`fmplex_worker.protocol.Engine` of one backbone and the workloads that it can do."""

    def __init__(
        self,
        backbone: Backbone,
        workloads: Sequence[Workload],
        fingerprint: Fingerprint,
        trainer: OpenTraining | None,
        ledger: Ledger,
    ) -> None:
        """`trainer`: what opens trainings here; None: nothing is trained. `ledger`: of its device."""
        self._backbone = backbone
        self._ledger = ledger
        self._trainer = trainer
        self._fingerprint = fingerprint
        self._workloads: dict[Kind, Workload] = {workload.kind: workload for workload in workloads}
        self._versions = Versions(backbone)
        self._group_from = group_from(backbone.device, backbone.dtype, backbone.hidden)
        self._units = PassUnits(backbone.spec.pass_units, backbone.device)

    @property
    def info(self) -> EngineInfo:
        """Facts for the registry; see `Engine.info`."""
        b = self._backbone
        return EngineInfo(
            b.spec.name, "text", b.hidden, b.max_tokens, str(b.device), b.memory_bytes, self._fingerprint,
            torch.get_num_threads(), self._ledger, b.lm_head is not None,
        )  # fmt: skip

    @property
    def capacity(self) -> Capacity:
        """Room of a pass now, and the memory of all workloads; see `Engine.capacity`."""
        memory = [workload.memory for workload in self._workloads.values()]
        return Capacity(
            self._units.now,
            memory=sum(use.budget for use in memory),
            used=sum(use.used for use in memory),
            cached=sum(use.cached for use in memory),
        )

    @property
    def loaded(self) -> Mapping[str, int]:
        """Digest of every resident version → bytes; see `Engine.loaded`."""
        return self._versions.sizes()

    @property
    def device_bytes(self) -> int:
        """Bytes of the device's own memory; see `Engine.device_bytes`."""
        return self._backbone.device_bytes

    def aim(self, units: int) -> None:
        """Cut jobs into pieces for passes of `units` at most; see `Engine.aim`."""
        for workload in self._workloads.values():
            workload.aim(units)

    def fit(self, package: Package) -> Version:
        """Make a version ready to be loaded, in host memory; see `Engine.fit`."""
        version = self._versions.fit(package)
        self._workload_of(version).accept(version)
        return version

    def load(self, fitted: Fitted) -> None:
        """Make a version resident; see `Engine.load`."""
        self._versions.load(cast(Version, fitted))

    def unload(self, digest: str) -> None:
        """Forget a version; see `Engine.unload`."""
        self._versions.unload(digest)
        for workload in self._workloads.values():
            workload.forget(digest)

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        """Validate and tokenise requests, all of a workload at once; see `Engine.prepare`."""
        made: dict[int, Prepared | FmplexError] = {}
        shares: dict[Kind, dict[int, tuple[Version, Request]]] = {}
        for i, (digest, request) in enumerate(batch):
            version = self._versions.get(digest)
            if version is None:
                made[i] = VfmClosed(f"version {digest} is not loaded here; send the request again")
            else:
                shares.setdefault(self._workload_of(version).kind, {})[i] = version, request
        for kind, share in shares.items():
            made.update(zip(share, self._workloads[kind].prepare([*share.values()]), strict=True))
        return [made[i] for i in range(len(batch))]

    def quick(self, digest: str, request: Request) -> bool:
        """Tell whether it takes but a moment to prepare a request; see `Engine.quick`."""
        version = self._versions.get(digest)
        return version is None or self._workload_of(version).quick(version, request)

    def drop(self, prepared: Prepared) -> None:
        """Forget what the job holds between passes; see `Engine.drop`."""
        self._workloads[prepared.kind].drop(prepared)

    def tune(self, order: TuneOrder, state: bytes | None) -> Training:
        """Open a training; see `Engine.tune`."""
        if self._trainer is None:
            raise InvalidInput("nothing is trained here; start the worker with tuning", field="model")
        return self._trainer(order, self._backbone, state)

    def step(self, work: Sequence[Work]) -> Outcome:
        """Run one pass; see `Engine.step`."""
        begun = time.perf_counter()
        self._units.regrow()
        results = run_isolated(work, self._run, self._units.halve, self._halve) if work else []
        return Outcome(time.perf_counter() - begun, results)

    @torch.inference_mode()
    def _run(self, works: Sequence[Work]) -> list[Any]:
        """Run the backbone once for all jobs. Results in the order of `works`; raises whatever goes wrong."""
        laid = [self._workloads[work.prepared.kind].lay_out(work) for work in works]
        output, places = self._encode(laid)
        shares: dict[Kind, list[int]] = {}
        for i, work in enumerate(works):
            shares.setdefault(work.prepared.kind, []).append(i)
        readings: list[Any] = [None] * len(works)
        for kind, share in shares.items():
            placed = [PlacedWork(works[i], places[i]) for i in share]
            for i, reading in zip(share, self._workloads[kind].read(output, placed), strict=True):
                readings[i] = reading
        # All of the pass has run: only now may jobs change.
        return [self._workloads[w.prepared.kind].commit(w, reading) for w, reading in zip(works, readings, strict=True)]

    def _encode(self, laid: Sequence[Sequence[PassText]]) -> tuple[PassOutput, list[tuple[int, ...]]]:
        """Pack the texts of all jobs into one row and encode it; return also where in the row the texts of each job are."""
        texts = [text for share in laid for text in share]
        order = packed_order([span for _, span in texts])
        row = pack([texts[at].span for at in order], self._backbone.device, self._group_from)
        hidden = self._backbone.encode(row, [texts[at].text for at in order])
        place = {at: i for i, at in enumerate(order)}
        numbers = iter(range(len(texts)))
        places = [tuple(place[next(numbers)] for _ in share) for share in laid]
        return PassOutput(hidden, row), places

    def _halve(self, work: Work) -> Work | None:
        return self._workloads[work.prepared.kind].halve(work)

    def _workload_of(self, version: Version) -> Workload:
        """Return the workload that serves the heads of a version. Raises `PackageRejected` if there is none here."""
        kinds = version.kinds
        for workload in self._workloads.values():
            if kinds <= workload.head_kinds:
                return workload
        raise PackageRejected(f"heads of kind {' and '.join(sorted(kinds))} are not served together here", field="head")
