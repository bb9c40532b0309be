"""Which engine hosts a backbone: by what the checkpoint is."""

from __future__ import annotations

from fmplex_broker.specs import BackboneSpec, WorkerSpec
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.engines.encoder import EncoderEngine
from fmplex_worker.engines.generator import GeneratorEngine
from fmplex_worker.engines.protocol import Engine


def open_engine(spec: BackboneSpec, worker: WorkerSpec) -> Engine:
    """Load the backbone. Raises `InvalidInput` that names the key of the fleet file to change."""
    backbone = load_backbone(spec, worker.device)
    return EncoderEngine(backbone) if backbone.speech is None else GeneratorEngine(backbone, worker.kv_bytes)
