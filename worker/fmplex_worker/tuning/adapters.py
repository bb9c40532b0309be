"""The adapter of a training, and the room that it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from fmplex_broker.packages.peft import read_options
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

    Raises `InvalidInput` (`lora.targets`, `ia3.targets`, `adapter`; `lora`, `ia3` and their parts where the version has another).
    """
    spec = order.spec
    files = {} if order.start is None else order.start.files
    if ADAPTER_CONFIG in files:
        _check_alike(spec, read_options(bytes(files[ADAPTER_CONFIG])))
        dropout = 0.0 if spec.lora is None else spec.lora.dropout
        return continued(backbone, bytes(files[ADAPTER_CONFIG]), bytes(files[ADAPTER_WEIGHTS]), dropout)
    if spec.ia3 is not None:
        return fresh_ia3(backbone, spec.ia3, generates=generates)
    return None if spec.lora is None else fresh_lora(backbone, spec.lora, spec.seed, generates=generates)


def _check_alike(spec: FitSpec | TextLoraSpec, options: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` if another adapter is asked for than the one that is gone on with, whose `options` these are."""
    kind, ends = options.get("peft_type"), "or begin with the backbone as model"
    lora = spec.lora if spec.ia3 is None and "lora" in spec.model_fields_set else None
    asked = "ia3" if spec.ia3 is not None else "" if lora is None else "lora"
    if asked and kind != asked.upper():
        raise InvalidInput(
            f"{asked}: what is gone on with has an adapter of kind {kind}, which is trained further; leave {asked} out, {ends}",
            field=asked,
        )
    if lora is None:
        return
    targets = options.get("target_modules")
    for name, wanted, own in (
        ("r", lora.r, options.get("r")),
        ("alpha", lora.alpha, options.get("lora_alpha")),
        ("targets", lora.targets and sorted(lora.targets), sorted(targets) if isinstance(targets, list) else targets),
    ):
        if wanted is not None and wanted != own:
            raise InvalidInput(
                f"lora.{name}: what is gone on with has {own!r}, not {wanted!r}; give that or leave lora out, {ends}",
                field=f"lora.{name}",
            )


def base_name(spec: FitSpec | TextLoraSpec) -> str:
    """Return what the adapter's configuration calls the backbone: a path of this machine is nobody else's business."""
    return spec.backbone if Path(spec.model).exists() else spec.model


def default_rate(spec: FitSpec, learnt: Learnt) -> float:
    """Return the highest learning rate of an adapter."""
    rate = spec.learning_rate or (IA3_RATE if learnt.scales else LORA_RATE)
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
