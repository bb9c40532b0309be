"""Training the missing models: a process of the worker's package does it, this side draws its progress."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pydantic import TypeAdapter
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fmplex.demo.generation.recipe import TrainingPlan
from fmplex.trainer import Trainer, fit_error
from fmplex_broker.specs.fitting import FitDone, FitFailed
from fmplex_broker.specs.fitting_text import TextEvent, TextSpec, TextStarted, TextStep

_EVENT: TypeAdapter[TextEvent] = TypeAdapter(TextEvent)


def train(out: Console, plan: TrainingPlan) -> int:
    """Train what the plan lacks; return how many models that were. Raises the typed error of what failed."""
    missing = plan.missing
    if not missing:
        out.print(f"trained before, kept in {plan.folder}", highlight=False, markup=False)
        return 0
    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(16),  # all of it fits 80 characters
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        shown = _TrainingProgress(out, progress, missing, plan.decoder.ask)
        for event in run(missing):
            shown.show(event)
    return len(missing)


def run(specs: Sequence[TextSpec]) -> Iterator[TextEvent]:
    """Train one after the other, yielding events as they come. The process ends when the generator is closed. Raises
    `Unavailable` where the worker's packages are not installed, and `JobFailed` if the process dies."""
    # In a session of its own: Ctrl-C reaches this side alone, which then ends it.
    trainer = Trainer("fmplex_worker.tuning.decoder", specs, _EVENT, extra="local", own_session=True)
    try:
        yield from trainer.events()
    finally:
        trainer.stop()


class _TrainingProgress:
    """The drawing of a training on `out`: a bar where there is a terminal, and a line for each fact worth keeping. `specs`: what
    is trained; `ask`: the question that samples of the decoder answer."""

    def __init__(self, out: Console, progress: Progress, specs: Sequence[TextSpec], ask: str) -> None:
        self._out, self._progress, self._ask = out, progress, ask
        self._steps = {spec.name: spec.steps for spec in specs}  # of what is not done yet
        self._bar = progress.add_task("starting", total=None, note="")
        self._begun = time.monotonic()

    def show(self, event: TextEvent) -> None:
        """Draw one event. Raises the typed error of a training that failed."""
        if isinstance(event, FitFailed):
            raise fit_error(event)
        if isinstance(event, TextStarted):
            self._start(event)
        elif isinstance(event, TextStep):
            self._step(event)
        else:
            self._done(event)

    def _start(self, event: TextStarted) -> None:
        self._begun = time.monotonic()
        whole = event.trained == event.parameters
        what = (
            f"{event.parameters / 1e6:.1f} M parameters" if whole else f"LoRA of {event.trained / 1e3:.0f} k parameters"
        )
        self._line(f"training {event.name}: {what}, {event.texts} texts of {event.tokens} tokens in all")
        self._progress.reset(self._bar, description=event.name, total=None, note="")
        if whole and self._ask:
            self._line(self._ask)

    def _step(self, event: TextStep) -> None:
        taken = max(time.monotonic() - self._begun, 1e-6)
        left = taken / event.step * (sum(self._steps.values()) - event.step)  # as if every model's steps took that long
        note = f"loss {event.loss:.2f}  {event.tokens / taken:.0f} tokens/s  about {left:.0f} s left"
        self._progress.update(self._bar, total=event.steps, completed=event.step, note=note)
        if event.sample:
            self._line(f"  {100 * event.step // event.steps:3} %  loss {event.loss:4.2f}  {event.sample}")

    def _done(self, event: FitDone) -> None:
        self._steps.pop(event.name, None)
        self._line(
            f"trained {event.name} in {event.seconds:.0f} s: {100 * event.score:.0f} % of the held-out tokens right "
            f"({100 * event.baseline:.0f} % before)"
        )

    def _line(self, text: str) -> None:
        self._out.print(escape(" ".join(text.split())) if "\n" in text else escape(text), highlight=False)
