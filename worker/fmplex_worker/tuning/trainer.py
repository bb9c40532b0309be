"""`fit`: one spec in, one package out."""

from __future__ import annotations

import time
from collections.abc import Callable

from fmplex_broker.packages.writing import refuse_foreign, write_package
from fmplex_broker.specs.fitting import FitDone, FitEpoch, FitEvent, FitSpec, FitStarted
from fmplex_worker.training import TuneOrder
from fmplex_worker.tuning.encoder import hosted
from fmplex_worker.tuning.head_course import HeadCourse
from fmplex_worker.tuning.run import Run, name_of
from fmplex_worker.tuning.settings import threads


def fit(spec: FitSpec, on_event: Callable[[FitEvent], None]) -> FitDone:
    """Train what `spec` asks for, write the package, measure it on the held-out part. `on_event` sees started, every epoch
    and, last, done, which is also returned.

    Raises a typed `FmplexError`: `InvalidInput` (its `field` says which part of the spec, `data` for bad lines), `Conflict`
    (`out` holds something else), `NonFiniteOutput` (training diverged). A failed fit leaves `out` as it was. The same spec,
    data and thread count on the same machine give the same package, bit by bit (CPU).
    """
    began = time.perf_counter()
    refuse_foreign(spec.out)
    with threads(spec.threads):
        order = TuneOrder(spec)
        course = HeadCourse(order, spec, hosted(spec))
        run, data = Run(course, name_of(order), None), course.data
        on_event(
            FitStarted(
                name=spec.name,
                train=len(data.train),
                held_out=len(data.held),
                labels=data.task.labels,
                ignored=data.ignored,
            )
        )
        _drive(run, course, spec, on_event)
        held_out = course.held_out
        assert held_out is not None
        package = write_package(spec.out, course.vfm, course.files())
    done = FitDone(
        name=spec.name,
        out=spec.out,
        artifact=package.digest,
        metric=held_out.metric,
        score=held_out.score,
        baseline=held_out.baseline,
        epochs=course.epochs,
        seconds=time.perf_counter() - began,
    )
    on_event(done)
    return done


def _drive(run: Run, course: HeadCourse, spec: FitSpec, on_event: Callable[[FitEvent], None]) -> None:
    """Run all units, and tell of each epoch with the mean loss of its steps."""
    losses: list[float] = []
    step, epoch = 0, 0
    while unit := run.next():
        unit.run()
        now = run.progress
        if now.step > step and now.loss is not None:
            losses.append(now.loss)
        step = now.step
        if course.epochs > epoch and now.validation_score is not None:
            epoch = course.epochs
            mean = sum(losses) / max(1, len(losses))
            on_event(FitEpoch(name=spec.name, epoch=epoch, epochs=spec.epochs, loss=mean, score=now.validation_score))
            losses = []
