"""The training of an adapter for generated text, from its first unit to its score."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fitting_text import TextLoraSpec
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.training import HeldOut, RunProgress, TuneOrder, Unit
from fmplex_worker.tuning.adapters import adapter_of, base_name, room_for
from fmplex_worker.tuning.decoder.answer_objective import AnswerObjective, examine
from fmplex_worker.tuning.decoder.answers import Answers
from fmplex_worker.tuning.decoder.examples import TextExample
from fmplex_worker.tuning.decoder.loop import BETAS, LAST_RATE, WARM_UP, split
from fmplex_worker.tuning.descent import Descent, Plan
from fmplex_worker.tuning.optimizer import Schedule
from fmplex_worker.tuning.state import State

LEAST = 2  # texts of a file, and of a file that validates


class AnswerCourse:
    """`fmplex_worker.tuning.run.Course` of generated text. `train`, and `held`, which are never trained on: the examples."""

    def __init__(self, order: TuneOrder, spec: TextLoraSpec, backbone: Backbone) -> None:
        if backbone.lm_head is None:
            raise InvalidInput(
                f"backbone {spec.backbone!r} has no language-model head and generates no text; give a decoder that has one",
                field="model",
            )
        head = Generation(max_tokens=spec.max_tokens, system=spec.system, chat_template=spec.chat_template)
        self.vfm = VfmSpec(name=spec.name, backbone=spec.backbone, head=head)
        answers = Answers(backbone, backbone.lm_head, head)
        self.train, self.held = split(answers.read(spec.data, spec.truncate, LEAST), spec.held_out)
        check = [] if order.validation is None else _read_apart(answers, order.validation, spec)
        learnt = adapter_of(order, backbone, generates=True)
        assert learnt is not None
        self.learnt, self.held_out = learnt, None
        self._spec = spec
        longest = max(len(example.tokens) for example in (*self.train, *self.held, *check))
        self.room = room_for(order, backbone, learnt, longest)
        count = _batches(spec, self.train)
        self._objective = AnswerObjective(learnt, self.train, check, count, spec.seed)
        self.descent = Descent(self._objective, _plan(spec, count), self.room)

    held_out: HeldOut | None

    @property
    def state(self) -> State | None:
        """Its state as of the last point where it may be cut; see `Course.state`."""
        return self.descent.state

    def restore(self, state: State) -> None:
        """Go on from a state; see `Course.restore`."""
        self.descent.restore(state)

    def units(self) -> Iterator[Unit]:
        """Yield all units; see `Course.units`."""
        yield from self.descent.units()
        self.descent.finish()
        self.held_out = yield from self._score()

    @property
    def progress(self) -> RunProgress:
        """How far it has come; see `Course.progress`."""
        return self.descent.progress

    def files(self, state: State | None = None) -> dict[str, bytes]:
        """Return the files of the package but for vfm.toml; see `Course.files`."""
        values = {name.removeprefix("adapter."): t for name, t in self.descent.parameters(state).items()}
        return self.learnt.files(base_name(self._spec), values)

    def _score(self) -> Generator[Unit, None, HeldOut]:
        """Score on the held-out texts exactly what goes into the package, and the backbone alone."""
        ours = yield from examine(self.room, self.learnt, self.held)
        alone = yield from examine(self.room, None, self.held)
        return HeldOut("accuracy", ours.score, alone.score)


def _batches(spec: TextLoraSpec, train: Sequence[TextExample]) -> int:
    """Return how many batches an epoch has."""
    if spec.batch_size is not None:
        return -(-len(train) // spec.batch_size)
    tokens = sum(len(example.tokens) - 1 for example in train)
    return min(len(train), max(1, round(tokens / spec.batch_tokens)))


def _read_apart(answers: Answers, path: Path, spec: TextLoraSpec) -> list[TextExample]:
    try:
        return answers.read(path, spec.truncate, 1)
    except InvalidInput as e:
        raise type(e)(e.message, field="validation") from None


def _plan(spec: TextLoraSpec, epoch: int) -> Plan:
    steps = spec.steps if spec.epochs is None else spec.epochs * epoch
    rate = spec.learning_rate * spec.learning_rate_multiplier
    return Plan(spec.seed, steps, epoch, spec.patience, Schedule(rate, steps, WARM_UP, LAST_RATE, BETAS), by_loss=True)
