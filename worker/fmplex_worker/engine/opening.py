"""Opening an engine: the backbone of a fleet file, with the workloads that its checkpoint allows."""

from __future__ import annotations

import logging

from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.fingerprint import take_fingerprint
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.engine.device_memory import device_memory, pass_bytes
from fmplex_worker.engine.engine import OpenTraining, PackedEngine
from fmplex_worker.ledger import Found, plan
from fmplex_worker.workloads.base import Workload
from fmplex_worker.workloads.encoding.workload import EncodingWorkload
from fmplex_worker.workloads.generation.workload import GenerationWorkload

log = logging.getLogger(__name__)
_LEAST_TOKENS = 64  # that memory for keys and values must hold


def open_engine(spec: BackboneSpec, worker: WorkerSpec, trainer: OpenTraining | None = None) -> PackedEngine:
    """Load the backbone, and share out its device. `trainer`: what opens trainings on it, if it may be trained on.

    Raises `InvalidInput` that names the key of the fleet file to change.
    """
    backbone = load_backbone(spec, worker.device)
    ledger = plan(worker, _found(backbone))
    log.info("memory of %s: %s", backbone.device, ", ".join(f"{part} {n:,}" for part, n in ledger._asdict().items()))
    workloads: list[Workload] = [EncodingWorkload(backbone)]
    if backbone.lm_head is not None:
        workloads.append(GenerationWorkload(backbone, backbone.lm_head, ledger.kv))
    return PackedEngine(backbone, workloads, take_fingerprint(backbone), trainer, ledger)


def _found(backbone: Backbone) -> Found:
    units, lm_head = backbone.spec.pass_units, backbone.lm_head
    return Found(
        has=device_memory(backbone.device),
        shared=backbone.device.type == "cpu",
        backbone=backbone.memory_bytes,
        units=units,
        activations=pass_bytes(backbone, units),
        least_kv=0 if lm_head is None else _LEAST_TOKENS * lm_head.kv.token_bytes,
    )
