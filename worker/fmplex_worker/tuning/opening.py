"""Opening a training: of a head, or of generated text, whichever was ordered."""

from __future__ import annotations

from fmplex_broker.specs.fitting import FitSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.training import TuneOrder
from fmplex_worker.tuning.decoder.answer_course import AnswerCourse
from fmplex_worker.tuning.head_course import HeadCourse
from fmplex_worker.tuning.run import Run, enough_memory, name_of


def open_run(order: TuneOrder, backbone: Backbone, state: bytes | None) -> Run:
    """Open a training, or go on with one; see `fmplex_worker.protocol.Engine.tune`."""
    spec = order.spec
    with enough_memory():
        if isinstance(spec, FitSpec):
            return Run(HeadCourse(order, spec, backbone), name_of(order), state)
        return Run(AnswerCourse(order, spec, backbone), name_of(order), state)
