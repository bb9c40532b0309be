"""Training a head alone: the backbone is frozen, so its features are computed once.

What is left is convex: L-BFGS on all rows at once, with an L2 penalty. An *epoch* is one strength of the penalty; each is half
of the one before and starts where that ended (a regularisation path, Friedman et al. 2010), until the validation slice stops
getting better. The best strength is then solved once more on the whole training part. `learning_rate` and `batch_size` have
no part in it. On 13 demo files, 6 random splits each, the mean score was 0.833; AdamW's best of 14 settings (rate, decay,
patience) reached 0.818.

A head with hidden layers is not convex: a strong penalty would take all its weights to zero, from where nothing leads back. So
its path begins weaker, and every strength begins anew at random weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fmplex_broker.examples.records import Record
from fmplex_broker.specs.fitting import FitSpec
from fmplex_worker.training import Unit
from fmplex_worker.tuning.early import EarlyStopping, Verdict, finite
from fmplex_worker.tuning.encoder import EncodedExample, targets
from fmplex_worker.tuning.head import Head
from fmplex_worker.tuning.seeds import generator
from fmplex_worker.tuning.slices import ValidationSplit
from fmplex_worker.tuning.state import State, named
from fmplex_worker.tuning.tasks import Predictions, Task

STRONGEST = 1.0  # penalty of the first epoch, times the sum of squared weights
STRONGEST_HIDDEN = 2**-6  # the same for heads with hidden layers
ITERATIONS = 50  # of L-BFGS in one epoch
TOLERANCE = 1e-6


class HeadPath:
    """The path of a head to its best strength, an epoch a unit. `head`: as it is now; `learned`, once all units have run: fitted
    to all but the validation slice; `final`: to everything."""

    def __init__(self, task: Task[Record], spec: FitSpec) -> None:
        self.epoch, self.loss, self.verdict = 0, 0.0, Verdict(0.0, 0.0)
        self.stopper = EarlyStopping(spec.patience)
        self.head: Head | None = None
        self.final: Head | None = None
        self._task, self._spec = task, spec
        self._before: State | None = None
        self.state: State | None = None

    @property
    def learned(self) -> Head:
        """The best head on the validation slice, fitted to all but that."""
        assert self.head is not None
        return self.head

    def head_of(self, state: State | None = None) -> Head:
        """Return the head as of `state`, or as of the best strength, fitted to everything once that is done."""
        if state is None and self.final is not None:
            return self.final
        head = copy.deepcopy(self.learned)
        if values := self.stopper.state if state is None else state.part("head"):
            head.load_state_dict(dict(values))
        return head

    def restore(self, state: State) -> None:
        """Go on after the last epoch of `state`; features and slices are made anew."""
        self._before = self.state = state
        self.epoch, self.loss, self.verdict = state.step, state.values["loss"], Verdict(*state.values["verdict"])
        self.stopper.restore(state.values["stopper"], state.part("best"))

    def units(
        self, items: Sequence[EncodedExample], features: Tensor, chosen: ValidationSplit, whole: Sequence[int]
    ) -> Iterator[Unit]:
        """Yield the units. `features` [rows, hidden]: the rows of `items`, one for each target; `whole`: those to fit to in the
        end.

        Raises `NonFiniteOutput`.
        """
        groups: Sequence[Tensor] = torch.split(features, [len(item.target) for item in items])
        learn, check = _FeatureRows(chosen.fit, items, groups), _FeatureRows(chosen.validate, items, groups)
        everything = _FeatureRows(whole, items, groups)
        self.head = self._new(learn)
        if self._before is not None:
            self.head.load_state_dict(self._before.part("head"))
        cost = ITERATIONS * len(learn.rows) * max(1, self._task.outputs) / features.shape[1]
        while self.epoch < self._spec.epochs and not self.stopper.stopped:
            yield Unit("step", 0, cost, partial(self._try, learn, check))
        self.head.load_state_dict(self.stopper.state)
        yield Unit("step", 0, cost, partial(self._fit_all, everything))

    def _try(self, learn: _FeatureRows, check: _FeatureRows) -> None:
        """Fit to the next strength, and see how good it is."""
        self.epoch += 1
        if self._spec.hidden:
            self.head = self._new(learn)
        head = self.learned
        self.loss = _solve(self._task, head, learn, self._strength(self.epoch), self.epoch)
        with torch.no_grad():
            outputs = head(check.rows)
            reference = Predictions(head(learn.rows), learn.items)
            loss = self._task.loss(learn.targets).mean(outputs, check.targets)
        score = self._task.score(reference, Predictions(outputs, check.items))
        self.verdict = Verdict(score, finite(loss, self.epoch))
        self.stopper.note(self.epoch, self.verdict, head.state_dict())
        values = {"loss": self.loss, "verdict": [*self.verdict], "stopper": self.stopper.values()}
        tensors = named("head", head.state_dict(), copy=True) | named("best", self.stopper.state, copy=False)
        self.state = State(self.epoch, tensors, values)

    def _fit_all(self, everything: _FeatureRows) -> None:
        best = self.stopper.best
        self.final = self._new(everything)
        _solve(self._task, self.final, everything, self._strength(best), best)

    def _new(self, part: _FeatureRows) -> Head:
        scale = self._task.scale(part.targets)
        random = generator(self._spec.seed, "head", self.epoch, len(part.items))
        return Head(part.rows, self._task.outputs, scale, self._spec.hidden, random)

    def _strength(self, epoch: int) -> float:
        return (STRONGEST_HIDDEN if self._spec.hidden else STRONGEST) / float(2 ** (epoch - 1))


class _FeatureRows:
    """Some items with their feature rows and targets."""

    def __init__(self, chosen: Sequence[int], items: Sequence[EncodedExample], groups: Sequence[Tensor]) -> None:
        self.items = [items[i] for i in chosen]
        self.rows = torch.cat([groups[i] for i in chosen])
        self.targets = targets(self.items)


def _solve(task: Task[Any], head: Head, part: _FeatureRows, strength: float, epoch: int) -> float:
    """Minimise loss plus penalty from where `head` stands. Returns the loss reached, with the penalty."""
    loss_of = task.loss(part.targets)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=ITERATIONS, tolerance_change=TOLERANCE, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of.mean(head(part.rows), part.targets) + strength * head.penalty()
        torch.autograd.backward(loss)
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(objective)
    with torch.no_grad():
        return finite(loss_of.mean(head(part.rows), part.targets) + strength * head.penalty(), epoch)
