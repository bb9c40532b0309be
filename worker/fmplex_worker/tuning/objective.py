"""What a descent learns: examples, their loss, what they are validated by."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from fmplex_worker.backbones.texts import Text
from fmplex_worker.training import Unit
from fmplex_worker.tuning.early import Verdict
from fmplex_worker.tuning.learnt import DropoutKey, Learnt
from fmplex_worker.tuning.room import Room


class Group(NamedTuple):
    """Parameters that are learnt alike: `rate` in those of the schedule."""

    parameters: Mapping[str, nn.Parameter]
    rate: float = 1.0
    decay: float = 0.0


class Objective(Protocol):
    """What is to be learnt. Examples are positions, from 0; a batch is some of them."""

    @property
    def learnt(self) -> Learnt:
        """The adapter that learns."""

    @property
    def divisible(self) -> bool:
        """Whether a batch may go through in several micro-batches."""

    def groups(self) -> list[Group]:
        """List the parameters, by names that differ from group to group."""

    def batches(self, epoch: int) -> list[list[int]]:
        """Make the batches of an epoch (from 0): always the same ones, and as many in every epoch."""

    def texts(self, example: int) -> Sequence[Text]:
        """Return the texts of an example."""

    def size(self, batch: Sequence[int]) -> float:
        """Return what the loss of a whole batch is divided by."""

    def loss(self, part: Sequence[int], hidden: Tensor, key: DropoutKey) -> Tensor:
        """Compute the loss of a part of a batch, not divided yet, from the hidden states `[tokens, hidden]` of its texts."""

    def loss_layers(self, part: Sequence[int], layers: float) -> float:
        """Return what the loss of a part costs a token, forward and backward, in layers; `layers`: what the logits of a token
        cost."""

    def begin(self, step: int) -> None:
        """Begin a step, or begin it once more: then what `loss` saw of it is forgotten."""

    def validate(self, room: Room) -> Generator[Unit, None, Verdict | None]:
        """Yield the units of an evaluation and return what comes of it; None: there is nothing to validate on."""

    def state(self) -> Mapping[str, Tensor]:
        """Return the tensors, beside the parameters, that it needs to go on; nobody changes them in place."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what `state` gave."""
