"""Gradient descent in units: batches, micro-batches, clipping, AdamW, schedule, evaluation, early stop, the best state.

It is a pure function of its objective, its plan and the step. At some steps, which the plan decides, it notes its whole state:
there it can be cut, and there it goes back to when losses are no numbers any more.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmplex_broker.errors import NonFiniteOutput
from fmplex_worker.training import RunProgress, Unit
from fmplex_worker.tuning.early import EarlyStopping, Verdict
from fmplex_worker.tuning.learnt import DropoutKey
from fmplex_worker.tuning.objective import Objective
from fmplex_worker.tuning.optimizer import Optimizer, Schedule
from fmplex_worker.tuning.room import Room
from fmplex_worker.tuning.state import State, named
from fmplex_worker.tuning.units import MicroBatch

CLIP = 1.0
NOTED_EVERY = 20  # steps at most between two states that it can be cut at
WARNINGS = 20  # that are kept
BAD_IN_A_ROW = 3  # steps whose losses are no numbers


class Plan(NamedTuple):
    """How long and how fast: `steps` at most, of which `epoch` are an epoch; `patience`: epochs without a better evaluation, by
    its score or `by_loss` alone."""

    seed: int
    steps: int
    epoch: int
    patience: int
    schedule: Schedule
    by_loss: bool = False


class Descent:
    """A descent. `state`: as of the last step at which it may be cut."""

    def __init__(self, objective: Objective, plan: Plan, room: Room) -> None:
        self.step, self.tokens, self.best_step, self.evaluations = 0, 0, 0, 0
        self.loss: float | None = None
        self.verdict: Verdict | None = None
        self.warnings: list[str] = []
        self.stopper = EarlyStopping(plan.patience)
        self._objective, self._plan, self._room = objective, plan, room
        self._bad, self._halved = 0, False
        self._optimizer: Optimizer | None = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._before: State | None = None
        self.state: State | None = None

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or more would not help."""
        return self.step >= self._plan.steps or self.stopper.stopped

    def restore(self, state: State) -> None:
        """Go on from a state; to be called before the first unit."""
        self._before = state
        self._objective.restore(state.part("more"))

    def units(self) -> Iterator[Unit]:
        """Yield all units. Raises `NonFiniteOutput`: it diverges also at half the rate."""
        groups = self._objective.groups()
        self._parameters = {name: p for group in groups for name, p in group.parameters.items()}
        self._optimizer = Optimizer(groups, self._plan.schedule)
        if self._before is not None:
            self._set(self._before)
        self._note()
        while not self.ended:
            yield from self._learn()
            fine = self._bad < BAD_IN_A_ROW
            if fine and (self.step % self._plan.epoch == 0 or self.step >= self._plan.steps):
                fine = yield from self._evaluate()
            elif fine and self.step % min(NOTED_EVERY, max(1, self._plan.steps // 50)) == 0:
                self._note()
            if not fine:
                self._go_back()
        if self.state is not None and self.state.step < self.step:  # the last steps were dropped
            self._bad = 0
            self._note()

    def parameters(self, at: State | None = None) -> Mapping[str, Tensor]:
        """Return parameters by their names: of the state `at`, or the best where anything was validated, else the last ones."""
        if at is None and self.stopper.state:
            return self.stopper.state
        if (noted := at or self.state) is not None and noted.tensors:
            return noted.part("now")
        return {name: p.detach() for group in self._objective.groups() for name, p in group.parameters.items()}

    def finish(self) -> None:
        """Leave the parameters in their best state."""
        self._take(self.parameters())

    @property
    def progress(self) -> RunProgress:
        """How far it has come; see `Training.progress`."""
        verdict = (None, None) if self.verdict is None else self.verdict
        early = self.stopper.stopped and self.step < self._plan.steps
        return RunProgress(
            self.step, self._plan.steps, -(-self.step // self._plan.epoch),
            self.loss, verdict[1], verdict[0], self.tokens, self.best_step, "stopped early" if early else "",
            warnings=(*self.warnings,),
        )  # fmt: skip

    @torch.no_grad()
    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put values into the parameters."""
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])

    def _learn(self) -> Generator[Unit, None, None]:
        """Do one step."""
        epoch, at = divmod(self.step, self._plan.epoch)
        batch = self._objective.batches(epoch)[at]
        whole = not self._objective.divisible
        yield from self._room.again(partial(self._gradients, batch), whole)
        tokens = sum(self._tokens(example) for example in batch)
        yield Unit(
            "step", 0, float(sum(p.numel() for p in self._parameters.values())) / 1000, partial(self._update, tokens)
        )

    def _gradients(self, batch: Sequence[int]) -> Generator[Unit, None, None]:
        """Compute the gradients of a batch, micro-batch by micro-batch."""
        walk = self._room.walk
        assert walk is not None
        self._objective.begin(self.step)
        self._zero()
        size, self._summed = self._objective.size(batch), 0.0
        parts = self._room.parts(batch, self._tokens) if self._objective.divisible else [[*batch]]
        for number, part in enumerate(parts):
            key = DropoutKey(self._plan.seed, self.step, number)
            texts = [text for example in part for text in self._objective.texts(example)]
            loss = partial(self._loss, part, size, key)
            layers = self._objective.loss_layers(part, walk.logits_layers)
            micro = MicroBatch(
                walk, self._objective.learnt, texts, loss, keep=self._room.begin(), key=key, loss_layers=layers
            )
            yield from micro.units(self._room.pace)
            self._room.end()
            self._summed += micro.value

    def _loss(self, part: Sequence[int], size: float, key: DropoutKey, hidden: Tensor) -> Tensor:
        return self._objective.loss(part, hidden, key) / size

    def _tokens(self, example: int) -> int:
        return sum(text.tokens for text in self._objective.texts(example))

    def _zero(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def _update(self, tokens: int) -> None:
        """Take the step, or drop it where there are values that are no numbers."""
        assert self._optimizer is not None
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), CLIP))
        if math.isfinite(self._summed) and math.isfinite(norm):
            self._optimizer.step(self.step)
            self._bad, self.loss = 0, self._summed
        else:
            self._bad += 1
            self._warn(f"step {self.step + 1} was dropped: its loss or its gradients are not finite")
        self._zero()
        self.step += 1
        self.tokens += tokens

    def _evaluate(self) -> Generator[Unit, None, bool]:
        """Validate, and note the state; return whether all is finite."""
        verdict = yield from self._objective.validate(self._room)
        if verdict is not None and not math.isfinite(verdict.loss):
            self._warn(f"the evaluation after step {self.step} is not finite")
            return False
        if verdict is not None:
            self.verdict, self.evaluations = verdict, self.evaluations + 1
            rank = Verdict(-verdict.loss, verdict.loss) if self._plan.by_loss else verdict
            if self.stopper.note(-(-self.step // self._plan.epoch), rank, self._parameters):
                self.best_step = self.step
        self._note()
        return True

    def _go_back(self) -> None:
        """Go back to the state that was noted last, at half the rate: once."""
        assert self.state is not None
        assert self._optimizer is not None
        if self._halved:
            raise NonFiniteOutput(
                f"training diverged in step {self.step} (also at half the rate, from step {self.state.step} on); "
                "lower learning_rate",
                field="learning_rate",
            )
        self._warn(f"back to step {self.state.step}, at half the learning rate")
        told = self.warnings
        self._set(self.state)
        self._halved, self.warnings = True, told
        self._optimizer.halved = True
        self._note()

    def _warn(self, what: str) -> None:
        self.warnings = [*self.warnings, what][-WARNINGS:]

    def _note(self) -> None:
        """Note the state, but not while steps are dropped: back there it would be no better."""
        assert self._optimizer is not None
        if self._bad:
            return
        tensors = (
            named("now", self._parameters, copy=True)
            | named("moment", self._optimizer.moments(), copy=True)
            | named("best", self.stopper.state, copy=False)
            | named("more", self._objective.state(), copy=False)
        )
        verdict = None if self.verdict is None else [*self.verdict]
        values = {
            "tokens": self.tokens, "loss": self.loss, "verdict": verdict, "warnings": [*self.warnings],
            "halved": self._halved, "best_step": self.best_step, "evaluations": self.evaluations,
            "stopper": self.stopper.values(), "room": self._room.tokens,
        }  # fmt: skip
        self.state = State(self.step, tensors, values)

    def _set(self, state: State) -> None:
        """Be as in `state`."""
        assert self._optimizer is not None
        values = state.values
        self._take(state.part("now"))
        self._optimizer.restore(state.part("moment"))
        self._optimizer.halved = values["halved"]
        self._objective.restore(state.part("more"))
        self.step, self.tokens, self.loss = state.step, values["tokens"], values["loss"]
        self.verdict = None if values["verdict"] is None else Verdict(*values["verdict"])
        self._bad, self._halved = 0, values["halved"]
        self.warnings, self.best_step = [*values["warnings"]], values["best_step"]
        self.evaluations = values["evaluations"]
        self.stopper.restore(values["stopper"], state.part("best"))
        self._room.tokens = values["room"]
