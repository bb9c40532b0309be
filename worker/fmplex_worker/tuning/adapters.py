"""The adapter of a training, and the room that it has."""

from __future__ import annotations

from pathlib import Path

from fmplex_broker.errors import InvalidInput, TooLarge
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.fitting_text import TextLoraSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.training import TuneOrder
from fmplex_worker.tuning.activations import Activations
from fmplex_worker.tuning.fresh import fresh_ia3, fresh_lora
from fmplex_worker.tuning.learnt import Learnt, continued
from fmplex_worker.tuning.room import TOKENS, Room
from fmplex_worker.tuning.walk import Walk

LORA_RATE = 1e-3
IA3_RATE = 1e-2
# Tensors as large as what is learnt: itself, gradients and two moments; values and moments of the state that was noted last and
# of two that wait to be saved; the best values.
HELD = 14


def adapter_of(order: TuneOrder, backbone: Backbone, *, generates: bool) -> Learnt | None:
    """Make the adapter that learns: that of the version that the order goes on from, or a new one; None: there is none.

    Raises `InvalidInput` (`lora.targets`, `ia3.targets`, `adapter`).
    """
    spec = order.spec
    files = {} if order.start is None else order.start.files
    if ADAPTER_CONFIG in files:
        dropout = 0.0 if spec.lora is None else spec.lora.dropout
        return continued(backbone, bytes(files[ADAPTER_CONFIG]), bytes(files[ADAPTER_WEIGHTS]), dropout)
    if spec.ia3 is not None:
        return fresh_ia3(backbone, spec.ia3, generates=generates)
    return None if spec.lora is None else fresh_lora(backbone, spec.lora, spec.seed, generates=generates)


def base_name(spec: FitSpec | TextLoraSpec) -> str:
    """Return what the adapter's configuration calls the backbone: a path of this machine is nobody else's business."""
    return spec.backbone if Path(spec.model).exists() else spec.model


def default_rate(spec: FitSpec) -> float:
    """Return the highest learning rate of an adapter."""
    rate = spec.learning_rate or (LORA_RATE if spec.ia3 is None else IA3_RATE)
    return rate * spec.learning_rate_multiplier


def room_for(order: TuneOrder, backbone: Backbone, learnt: Learnt | None, longest: int, together: int = 0) -> Room:
    """Make the room of a training whose texts have `longest` tokens at most; `together`: tokens that must go through at once.

    Raises `InvalidInput`: the family cannot be trained; `TooLarge`: its activations take more than the order allows.
    """
    if learnt is None:
        try:
            return Room(backbone, Walk(backbone))
        except InvalidInput:  # nothing is learnt of the backbone: it need not go layer by layer
            return Room(backbone, None)
    walk = Walk(backbone)
    if order.memory is None:
        return Room(backbone, walk, walk.layers)
    most = max(TOKENS, longest, together)
    held = HELD * sum(parameter.nbytes for parameter in learnt.parameters.values())
    if isinstance(order.spec, TextLoraSpec) and backbone.lm_head is not None:
        held += (
            3 * most * backbone.lm_head.vocabulary * 4
        )  # logits, their softmax and gradient, should all of them be learnt
    if held >= order.memory:
        raise TooLarge(
            f"what is learnt, its moments and its best state take {held:,} bytes, and there are {order.memory:,} in all; give "
            "a lower rank or fewer targets, or raise worker.tuning.bytes",
            field="worker.tuning.bytes",
        )
    return Room(backbone, walk, Activations(walk, learnt).layers_kept(most, longest, order.memory - held))
