"""Which engine hosts a backbone: by what the checkpoint is."""

from __future__ import annotations

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.engine.encoder import EncoderEngine
from fmplex_worker.engine.engine import GeneratorEngine
from fmplex_worker.protocol import Engine

_LEAST_TOKENS = 64  # that memory for keys and values must hold


def open_engine(spec: BackboneSpec, worker: WorkerSpec) -> Engine:
    """Load the backbone. Raises `InvalidInput` that names the key of the fleet file to change."""
    backbone = load_backbone(spec, worker.device)
    if backbone.lm_head is None:
        return EncoderEngine(backbone)
    least = _LEAST_TOKENS * backbone.lm_head.kv.token_bytes
    if worker.kv_bytes < least:
        raise InvalidInput(
            f"{worker.kv_bytes} bytes hold {worker.kv_bytes // backbone.lm_head.kv.token_bytes} tokens of a text; give at least "
            f"{least}, and as much more as texts are to be long and many",
            field="worker.kv_bytes",
        )
    return GeneratorEngine(backbone, worker.kv_bytes)
