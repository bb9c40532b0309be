"""The training of a head, alone on frozen features or with an adapter, from its first unit to its score."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence

import safetensors.torch
from torch import Tensor

from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.package import HEAD
from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.training import HeldOut, RunProgress, TuneOrder, Unit
from fmplex_worker.tuning.adapters import adapter_of, base_name, default_rate, room_for
from fmplex_worker.tuning.descent import Descent, Plan
from fmplex_worker.tuning.encoder import EncodedExample, head_rows
from fmplex_worker.tuning.frozen import HeadPath
from fmplex_worker.tuning.head import apply_head
from fmplex_worker.tuning.head_data import read_data
from fmplex_worker.tuning.head_objective import HeadObjective, forward
from fmplex_worker.tuning.optimizer import Schedule
from fmplex_worker.tuning.state import State
from fmplex_worker.tuning.tasks import Predictions


class HeadCourse:
    """`fmplex_worker.tuning.run.Course` of a head. `data`: what it is given; `learnt`: the adapter that learns too, or None."""

    def __init__(self, order: TuneOrder, spec: FitSpec, backbone: Backbone) -> None:
        self.learnt = adapter_of(order, backbone, generates=False)
        self.data = read_data(spec, backbone, order.validation, self.learnt is not None)
        self.held_out: HeldOut | None = None
        self._spec, self._backbone = spec, backbone
        items = [*self.data.train, *self.data.held]
        self._tokens = sum(text.tokens for item in self.data.train for text in item.sequences)
        self._path = HeadPath(self.data.task, spec) if self.data.task.outputs else None
        if order.start is not None and self._path is None and self.learnt is None:
            raise _nothing_to_train(spec)
        self._objective: HeadObjective | None = None
        self._descent: Descent | None = None
        self._resumed = False
        longest, together = max(text.tokens for item in items for text in item.sequences), 0
        if self.learnt is not None:
            self._objective = HeadObjective(self.data.task, self.learnt, self.data.train, self.data.chosen, spec)
            if not self._objective.divisible:
                together = longest * len(items[0].sequences) * spec.batch_size
        rows = sum(len(item.sequences) if self.data.task.pooling else len(item.target) for item in items)
        features = 4 * rows * backbone.hidden if self._path is not None else 0
        self.room = room_for(order, backbone, self.learnt, longest, together, features)
        if self._objective is not None and self.learnt is not None:
            plan = _plan(spec, self._objective, default_rate(spec, self.learnt))
            self._descent = Descent(self._objective, plan, self.room)

    @property
    def epochs(self) -> int:
        """How many epochs have been evaluated."""
        if self._descent is not None:
            return self._descent.evaluations
        return 0 if self._path is None else self._path.epoch

    @property
    def vfm(self) -> VfmSpec:
        """The vFM that comes of it."""
        return self.data.vfm

    @property
    def state(self) -> State | None:
        """Its state as of the last point where it may be cut; see `Course.state`."""
        if self._descent is not None:
            return self._descent.state
        return None if self._path is None else self._path.state

    def restore(self, state: State) -> None:
        """Go on from a state; see `Course.restore`."""
        self._resumed = True
        if self._descent is not None:
            self._descent.restore(state)
        elif self._path is not None:
            self._path.restore(state)

    def units(self) -> Iterator[Unit]:
        """Yield all units; see `Course.units`."""
        if self._descent is not None and self._objective is not None:
            if self._path is not None and not self._resumed:
                yield from self._fit_path(self._path)
                # Starting from a fitted head, the adapter is not trained to please a random one (Kumar et al. 2022).
                self._objective.give(self._path.learned)
            yield from self._descent.units()
            self._descent.finish()
        elif self._path is not None:
            yield from self._fit_path(self._path)
        self.held_out = yield from self._score()

    @property
    def progress(self) -> RunProgress:
        """How far it has come; see `Course.progress`."""
        if self._descent is not None:
            return self._descent.progress
        path = self._path
        if path is None:
            return RunProgress(0, 0)
        return RunProgress(
            path.epoch, self._spec.epochs, path.epoch, path.loss if path.epoch else None,
            path.verdict.loss if path.epoch else None, path.verdict.score if path.epoch else None,
            self._tokens if path.epoch else 0, path.stopper.best, "stopped early" if path.stopper.stopped else "",
        )  # fmt: skip

    def files(self, state: State | None = None) -> dict[str, bytes]:
        """Return the files of the package but for vfm.toml; see `Course.files`."""
        values = {} if self._descent is None else self._descent.parameters(state)
        files = {}
        if head := self._head(values, state):
            files[HEAD] = safetensors.torch.save(dict(head))
        if self.learnt is not None:
            adapter = {name.removeprefix("adapter."): t for name, t in values.items() if name.startswith("adapter.")}
            files |= self.learnt.files(base_name(self._spec), adapter)
        return files

    def _head(self, values: Mapping[str, Tensor], state: State | None = None) -> dict[str, Tensor]:
        """Return the tensors of head.safetensors; nothing if the head has no weights."""
        if self._path is None:
            return {}
        if self._objective is None:
            return self._path.head_of(state).folded()
        if self._objective.head is None:
            return {}
        head = copy.deepcopy(self._objective.head)
        own = {name.removeprefix("head."): t for name, t in values.items() if name.startswith("head.")}
        head.load_state_dict(own, strict=False)
        return head.folded()

    def _fit_path(self, path: HeadPath) -> Iterator[Unit]:
        features = yield from self._rows(self.data.train)
        yield from path.units(self.data.train, features, self.data.chosen, self.data.whole)

    def _rows(self, items: list[EncodedExample]) -> Generator[Unit, None, Tensor]:
        """Compute what a head reads of items: [rows, hidden]."""
        pooling = self.data.task.pooling

        def read(part: Sequence[EncodedExample], hidden: Tensor) -> Tensor:
            return head_rows(hidden, [text for item in part for text in item.sequences], pooling)

        return (yield from forward(self.room, self.learnt, items, read))

    def _score(self) -> Generator[Unit, None, HeldOut]:
        """Score on the held-out part exactly what goes into the package."""
        data, task = self.data, self.data.task
        train = [data.train[i] for i in data.whole]
        rows = yield from self._rows(data.held)
        head = self._head({} if self._descent is None else self._descent.parameters())
        if head:
            outputs = apply_head(head, rows)
            score = task.score(Predictions(outputs, train), Predictions(outputs, data.held))
        else:
            reference = yield from self._rows(train)
            score = task.score(Predictions(reference, train), Predictions(rows, data.held))
        return HeldOut(task.metric, score, task.baseline(train, data.held))


def _nothing_to_train(spec: FitSpec) -> InvalidInput:
    return InvalidInput(
        f"lora: what is gone on with has no adapter, and a head of kind {spec.head} has no weights, so there is nothing to "
        'train; give lora, as {"r": 8}, or ia3',
        field="lora",
    )


def _plan(spec: FitSpec, objective: HeadObjective, rate: float) -> Plan:
    epoch = len(objective.batches(0))
    steps = spec.epochs * epoch
    return Plan(spec.seed, steps, epoch, spec.patience, Schedule(rate, steps))
