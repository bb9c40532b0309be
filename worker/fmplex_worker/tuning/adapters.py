"""The adapter of a training, and the room that it has."""

from __future__ import annotations

from pathlib import Path

from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.fitting_text import TextLoraSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.training import TuneOrder
from fmplex_worker.tuning.activations import Activations
from fmplex_worker.tuning.footprint import Footprint
from fmplex_worker.tuning.fresh import fresh_ia3, fresh_lora
from fmplex_worker.tuning.learnt import Learnt, continued
from fmplex_worker.tuning.room import TOKENS, Room
from fmplex_worker.tuning.walk import Walk

LORA_RATE = 1e-3
IA3_RATE = 1e-2
FEATURES = (
    3  # tensors as large as what a head reads of all examples: itself, its slices, and once more for the last solve
)
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


def room_for(
    order: TuneOrder, backbone: Backbone, learnt: Learnt | None, longest: int, together: int = 0, features: int = 0
) -> Room:
    """Make the room of a training whose texts have `longest` tokens at most; `together`: tokens that must go through at once;
    `features`: bytes of what a head reads of all examples.

    Raises `InvalidInput`: the family cannot be trained; `TooLarge`: it takes more memory than the order allows.
    """
    held = FEATURES * features
    if learnt is None:
        try:
            walk: Walk | None = Walk(backbone)
        except InvalidInput:  # nothing is learnt of the backbone: it need not go layer by layer
            walk = None
        return Room(backbone, walk, Footprint(held), order.memory)
    walk = Walk(backbone)
    most = max(TOKENS, longest, together)
    held += HELD * sum(parameter.nbytes for parameter in learnt.parameters.values())
    if isinstance(order.spec, TextLoraSpec) and backbone.lm_head is not None:
        # Logits, their softmax and gradient, should all of them be learnt.
        held += 3 * most * backbone.lm_head.vocabulary * 4
    if order.memory is None:
        return Room(backbone, walk)
    Footprint(held).layers_kept(order.memory)  # before anything is measured, which takes memory
    return Room(backbone, walk, Footprint(held, Activations(walk, learnt), most, longest), order.memory)
