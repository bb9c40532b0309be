"""A LoRA or (IA)³ for a decoder, as the package of a generating vFM."""

from __future__ import annotations

import time
from collections.abc import Callable

from fmplex_broker.packages.writing import refuse_foreign, write_package
from fmplex_broker.specs.fitting import FitDone
from fmplex_broker.specs.fitting_text import TextEvent, TextLoraSpec, TextStarted, TextStep
from fmplex_worker.training import TuneOrder
from fmplex_worker.tuning.decoder.answer_course import AnswerCourse
from fmplex_worker.tuning.decoder.loop import REPORTS
from fmplex_worker.tuning.encoder import hosted
from fmplex_worker.tuning.run import Run, name_of
from fmplex_worker.tuning.settings import threads


def train_lora(spec: TextLoraSpec, on_event: Callable[[TextEvent], None]) -> FitDone:
    """Train, write the package, and score it beside the backbone alone.

    Raises `InvalidInput` (`data`, `model`), `Conflict` (`out` holds something else) or `NonFiniteOutput` (training diverged).
    """
    began = time.perf_counter()
    refuse_foreign(spec.out)
    with threads(spec.threads):
        backbone, order = hosted(spec), TuneOrder(spec)
        course = AnswerCourse(order, spec, backbone)
        run = Run(course, name_of(order), None)
        tokens = sum(len(example.tokens) for example in course.train)
        trained = sum(p.numel() for p in course.learnt.parameters.values())
        size = sum(p.numel() for p in backbone.model.parameters()) + trained
        texts = len(course.train) + len(course.held)
        on_event(TextStarted(name=spec.name, texts=texts, tokens=tokens, parameters=size, trained=trained))
        _drive(run, spec, on_event)
        held_out, steps = course.held_out, run.progress.epoch
        assert held_out is not None
        package = write_package(spec.out, course.vfm, course.files())
    done = FitDone(
        name=spec.name, out=spec.out, artifact=package.digest, metric=held_out.metric, score=held_out.score,
        baseline=held_out.baseline, epochs=steps, seconds=time.perf_counter() - began,
    )  # fmt: skip
    on_event(done)
    return done


def _drive(run: Run, spec: TextLoraSpec, on_event: Callable[[TextEvent], None]) -> None:
    """Run all units, and tell of the steps now and then, with the mean loss since."""
    losses: list[float] = []
    step, told = 0, 0
    while unit := run.next():
        unit.run()
        now = run.progress
        if now.step == step:
            continue
        step = now.step
        losses += [] if now.loss is None else [now.loss]
        if step - told >= max(1, now.steps // REPORTS):
            told, mean = step, sum(losses) / max(1, len(losses))
            on_event(TextStep(name=spec.name, step=step, steps=now.steps, loss=mean, tokens=now.tokens))
            losses = []
