"""Opening an engine: the backbone of a fleet file, with the workloads that its checkpoint allows."""

from __future__ import annotations

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.backbones.backbone import Backbone, LmHead
from fmplex_worker.backbones.fingerprint import take_fingerprint
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.engine.engine import OpenTraining, PackedEngine
from fmplex_worker.workloads.base import Workload
from fmplex_worker.workloads.encoding.workload import EncodingWorkload
from fmplex_worker.workloads.generation.workload import GenerationWorkload

_LEAST_TOKENS = 64  # that memory for keys and values must hold


def open_engine(spec: BackboneSpec, worker: WorkerSpec, trainer: OpenTraining | None = None) -> PackedEngine:
    """Load the backbone. `trainer`: what opens trainings on it, if it may be trained on.

    Raises `InvalidInput` that names the key of the fleet file to change.
    """
    backbone = load_backbone(spec, worker.device)
    workloads: list[Workload] = [EncodingWorkload(backbone)]
    if backbone.lm_head is not None:
        workloads.append(_generation(backbone, backbone.lm_head, worker.kv_bytes))
    return PackedEngine(backbone, workloads, take_fingerprint(backbone), trainer)


def _generation(backbone: Backbone, lm_head: LmHead, kv_bytes: int) -> GenerationWorkload:
    """Return the workload, with memory for some texts at least. Raises `InvalidInput`."""
    least = _LEAST_TOKENS * lm_head.kv.token_bytes
    if kv_bytes < least:
        raise InvalidInput(
            f"{kv_bytes} bytes hold {kv_bytes // lm_head.kv.token_bytes} tokens of a text; give at least "
            f"{least}, and as much more as texts are to be long and many",
            field="worker.kv_bytes",
        )
    return GenerationWorkload(backbone, lm_head, kv_bytes)
