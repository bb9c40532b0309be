"""An adapter and a head that learn together from labelled examples."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fmplex_broker.examples.records import Record
from fmplex_broker.specs.fitting import FitSpec
from fmplex_worker.backbones.texts import Text
from fmplex_worker.training import Unit
from fmplex_worker.tuning.early import Verdict
from fmplex_worker.tuning.encoder import EncodedExample, head_rows, targets
from fmplex_worker.tuning.head import Head
from fmplex_worker.tuning.learnt import DropoutKey, Learnt
from fmplex_worker.tuning.objective import Group
from fmplex_worker.tuning.room import Room
from fmplex_worker.tuning.seeds import generator
from fmplex_worker.tuning.slices import ValidationSplit, batches
from fmplex_worker.tuning.tasks import Predictions, Task

HEAD_RATE = 3.0  # of the head, in those of the adapter
HEAD_DECAY = 0.1
REFERENCE = 1024  # examples at most, of which thresholds and centroids are taken for an evaluation


class HeadObjective:
    """`fmplex_worker.tuning.objective.Objective` of a task. `head`: None where it has no weights, or until it is given one.

    A loss that compares rows takes what the epoch saw last while it trained as the reference of its evaluation: slightly stale,
    but free.
    """

    def __init__(
        self,
        task: Task[Record],
        learnt: Learnt,
        items: Sequence[EncodedExample],
        chosen: ValidationSplit,
        spec: FitSpec,
    ) -> None:
        self.head: Head | None = None
        self.learnt = learnt
        self._task, self._spec = task, spec
        self._learn, self._check = [items[i] for i in chosen.fit], [items[i] for i in chosen.validate]
        self._loss = task.loss(targets(self._learn))
        self._device = next(iter(learnt.parameters.values())).device
        self._seen: dict[int, Tensor] = {}  # example -> its rows in this epoch, of those that came last
        self._step, self._now = 0, dict[int, Tensor]()  # likewise of this step
        self._of_epoch: tuple[int, list[list[int]]] = (-1, [])  # the last one that was asked for

    @property
    def divisible(self) -> bool:
        """Whether the loss is a sum over rows; see `Objective.divisible`."""
        return self._loss.divisible

    def groups(self) -> list[Group]:
        """List the parameters; see `Objective.groups`."""
        made = [Group({f"adapter.{name}": p for name, p in self.learnt.parameters.items()})]
        if self.head is not None:
            head = {f"head.{name}": p for name, p in self.head.named_parameters()}
            made.append(Group(head, HEAD_RATE, HEAD_DECAY))
        return made

    def batches(self, epoch: int) -> list[list[int]]:
        """Make the batches of an epoch; see `Objective.batches`."""
        if self._of_epoch[0] != epoch:
            self._of_epoch = epoch, self._batches(epoch)
        return self._of_epoch[1]

    def _batches(self, epoch: int) -> list[list[int]]:
        strata = [item.stratum for item in self._learn]
        order = generator(self._spec.seed, "order", epoch)
        return batches(strata, self._spec.batch_size, not self.divisible, order)

    def texts(self, example: int) -> Sequence[Text]:
        """Return the texts of an example; see `Objective.texts`."""
        return self._learn[example].sequences

    def size(self, batch: Sequence[int]) -> float:
        """Return what the loss of a batch is divided by; see `Objective.size`."""
        return self._loss.size(targets([self._learn[i] for i in batch]))

    def loss(self, part: Sequence[int], hidden: Tensor, key: DropoutKey) -> Tensor:
        """Compute the loss of a part of a batch; see `Objective.loss`."""
        items = [self._learn[i] for i in part]
        outputs = self.outputs(items, hidden)
        if not self.divisible:
            rows = torch.split(outputs.detach().cpu(), [len(item.sequences) for item in items])
            self._now |= zip(part, rows, strict=True)
        return self._loss.total(outputs, targets(items).to(outputs.device))

    def loss_layers(self, part: Sequence[int], layers: float) -> float:
        """Return what the loss costs; see `Objective.loss_layers`."""
        return 0.5

    def outputs(self, items: Sequence[EncodedExample], hidden: Tensor) -> Tensor:
        """Compute the outputs of the head, or what it reads where it has no weights, from the hidden states of items."""
        rows = head_rows(hidden, [text for item in items for text in item.sequences], self._task.pooling)
        return rows if self.head is None else self.head(rows)

    def begin(self, step: int) -> None:
        """Begin a step; see `Objective.begin`."""
        if step != self._step:
            self._seen = _last(self._seen | self._now)
        self._step, self._now = step, {}

    def validate(self, room: Room) -> Generator[Unit, None, Verdict | None]:
        """Score the validation slice; see `Objective.validate`."""
        outputs = yield from forward(room, self.learnt, self._check, self.outputs)
        loss = float(self._loss.mean(outputs, targets(self._check)))
        seen = _last(self._seen | self._now)
        known = [self._learn[i] for i in seen] if seen else self._learn
        reference = Predictions(torch.cat([*seen.values()]) if seen else outputs[:0], known)
        score = self._task.score(reference, Predictions(outputs, self._check))
        self._seen, self._now = {}, {}
        return Verdict(score, loss)

    def state(self) -> Mapping[str, Tensor]:
        """Return statistics of the head, and what the epoch saw; see `Objective.state`."""
        made = {} if self.head is None else {f"head.{name}": b.clone() for name, b in self.head.named_buffers()}
        if seen := _last(self._seen | self._now):
            made |= {"seen": torch.tensor([*seen]), "rows": torch.cat([*seen.values()])}
        return made

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what `state` gave; see `Objective.restore`."""
        if self.head is None and "head.mean" in tensors:
            scale = self._task.scale(targets(self._learn))
            self.give(Head(tensors["head.mean"][None], self._task.outputs, scale, self._spec.hidden))
        if self.head is not None:
            buffers = {name: tensors[f"head.{name}"] for name, _ in self.head.named_buffers()}
            self.head.load_state_dict(buffers, strict=False)
        examples = tensors["seen"].tolist() if "seen" in tensors else []
        sizes = [len(self._learn[i].sequences) for i in examples]
        rows = torch.split(tensors["rows"], sizes) if examples else ()
        self._seen, self._now = dict(zip(examples, rows, strict=True)), {}

    def give(self, head: Head) -> None:
        """Give it the head to begin with."""
        self.head = head.to(self._device)


def _last(seen: dict[int, Tensor]) -> dict[int, Tensor]:
    """Keep those that came last."""
    return dict([*seen.items()][-REFERENCE:])


def forward(
    room: Room,
    learnt: Learnt | None,
    items: Sequence[EncodedExample],
    read: Callable[[Sequence[EncodedExample], Tensor], Tensor],
) -> Generator[Unit, None, Tensor]:
    """Yield the units of a forward of items without gradients; return what `read` makes of them and their hidden states, one
    after the other, on the CPU."""

    def attempt() -> Generator[Unit, None, list[Tensor]]:
        made: list[Tensor] = []
        for part in room.parts(items, lambda item: sum(text.tokens for text in item.sequences)):
            texts = [text for item in part for text in item.sequences]
            yield from room.states(learnt, texts, partial(_keep, made, read, part))
        return made

    return torch.cat((yield from room.again(attempt)))


@torch.no_grad()
def _keep(
    made: list[Tensor],
    read: Callable[[Sequence[EncodedExample], Tensor], Tensor],
    part: Sequence[EncodedExample],
    hidden: Tensor,
) -> None:
    made.append(read(part, hidden).cpu())
