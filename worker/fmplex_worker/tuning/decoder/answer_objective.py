"""An adapter that learns to answer: every token of an answer from all before it."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.texts import Text
from fmplex_worker.training import Unit
from fmplex_worker.tuning.decoder.examples import TextExample
from fmplex_worker.tuning.early import Verdict
from fmplex_worker.tuning.learnt import DropoutKey, Learnt
from fmplex_worker.tuning.objective import Group
from fmplex_worker.tuning.room import Room
from fmplex_worker.tuning.seeds import generator


class Found(list[tuple[float, int, int]]):
    """What was found of some texts, part by part: summed loss, right tokens, tokens to find."""

    @property
    def verdict(self) -> Verdict:
        """The share of the tokens that were most likely, and the mean loss of a token."""
        loss, right, count = (sum(part[i] for part in self) for i in range(3))
        return Verdict(right / max(1, count), loss / max(1, count))


class AnswerObjective:
    """`fmplex_worker.tuning.objective.Objective` of `train`, texts with what is to be learnt of them, in `count` batches an
    epoch; `check`: what validates, if anything."""

    divisible = True

    def __init__(
        self, learnt: Learnt, train: Sequence[TextExample], check: Sequence[TextExample], count: int, seed: int
    ) -> None:
        self.learnt = learnt
        self._train, self._check, self._seed = train, check, seed
        self._count = count
        self._of_epoch: tuple[int, list[list[int]]] = (-1, [])  # the last one that was asked for

    def groups(self) -> list[Group]:
        """List the parameters; see `Objective.groups`."""
        return [Group({f"adapter.{name}": p for name, p in self.learnt.parameters.items()})]

    def batches(self, epoch: int) -> list[list[int]]:
        """Make the batches of an epoch; see `Objective.batches`."""
        if self._of_epoch[0] != epoch:
            self._of_epoch = epoch, self._batches(epoch)
        return self._of_epoch[1]

    def _batches(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(len(self._train), generator=generator(self._seed, "order", epoch)).numpy()
        return [part.tolist() for part in np.array_split(order, self._count)]

    def texts(self, example: int) -> Sequence[Text]:
        """Return the text of an example, without its last token, which nothing follows; see `Objective.texts`."""
        return (_inputs(self._train[example]),)

    def size(self, batch: Sequence[int]) -> float:
        """Return how many tokens a batch is to learn; see `Objective.size`."""
        return float(sum(len(self._train[i].tokens) - self._train[i].learn for i in batch))

    def loss(self, part: Sequence[int], hidden: Tensor, key: DropoutKey) -> Tensor:
        """Compute the cross entropy of all tokens to learn; see `Objective.loss`."""
        places, wanted = _to_find([self._train[i] for i in part], hidden.device)
        return functional.cross_entropy(self.learnt.logits(hidden[places], key), wanted, reduction="sum")

    def loss_layers(self, part: Sequence[int], layers: float) -> float:
        """Return what the loss costs; see `Objective.loss_layers`."""
        return 2 * layers * self.size(part) / sum(len(self._train[i].tokens) - 1 for i in part)

    def begin(self, step: int) -> None:
        """Begin a step; see `Objective.begin`. It keeps nothing."""

    def validate(self, room: Room) -> Generator[Unit, None, Verdict | None]:
        """Score what validates; see `Objective.validate`."""
        if not self._check:
            return None
        return (yield from examine(room, self.learnt, self._check))

    def state(self) -> Mapping[str, Tensor]:
        """Return nothing; see `Objective.state`."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on; see `Objective.restore`."""


def examine(room: Room, learnt: Learnt | None, examples: Sequence[TextExample]) -> Generator[Unit, None, Verdict]:
    """Yield the units that find out how well answers are found, by the backbone alone if nothing is `learnt`."""

    def attempt() -> Generator[Unit, None, Found]:
        found = Found()
        for part in room.parts(examples, lambda example: len(example.tokens) - 1):
            texts = [_inputs(example) for example in part]
            yield from room.states(learnt, texts, partial(_look, room.backbone, learnt, part, found))
        return found

    return (yield from room.again(attempt)).verdict


@torch.no_grad()
def _look(backbone: Backbone, learnt: Learnt | None, part: Sequence[TextExample], found: Found, hidden: Tensor) -> None:
    places, wanted = _to_find(part, hidden.device)
    states = hidden[places]
    logits = backbone.logits(states, [None] * len(states)) if learnt is None else learnt.logits(states, None)
    loss = functional.cross_entropy(logits, wanted, reduction="sum")
    found.append((float(loss), int((logits.argmax(-1) == wanted).sum()), len(wanted)))


def _inputs(example: TextExample) -> Text:
    return Text.of_ids(np.array(example.tokens[:-1], dtype=np.int64))


def _to_find(examples: Sequence[TextExample], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the places in the hidden states of the examples' inputs, one after the other, from which a token is to be found,
    and these tokens."""
    places: list[int] = []
    wanted: list[int] = []
    start = 0
    for tokens, learn in examples:
        places += range(start + learn - 1, start + len(tokens) - 1)
        wanted += tokens[learn:]
        start += len(tokens) - 1
    return torch.tensor(places, device=device), torch.tensor(wanted, device=device)
