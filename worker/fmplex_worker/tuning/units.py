"""Training in units: small parts of a micro-batch's forward and backward, between which the device is free for passes.

A unit is a few layers of one packed row. The graph is cut before every layer (the hidden states that go in are detached), and
gradients are handed from cut to cut, from the last layer to the first: to the bit those of one backward through the whole model.
A layer keeps what its backward needs, or only what went into it, and is then computed once more (Chen et al. 2016, "Training
Deep Nets with Sublinear Memory Cost").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fmplex_worker.backbones.texts import Text
from fmplex_worker.packed.row import Pack, TokenSpan, pack, packed_order, running
from fmplex_worker.packed.segments import Adapter
from fmplex_worker.training import Unit
from fmplex_worker.tuning.learnt import DropoutKey, Learnt
from fmplex_worker.tuning.pace import Pace
from fmplex_worker.tuning.walk import Walk

_BACKWARD = 1.25  # cost of a layer's backward, in those of its forward: its weights are not learnt


class _Row:
    """Texts as one packed row. `back` puts hidden states of their own tokens into the order of the texts."""

    def __init__(self, walk: Walk, adapter: Adapter | None, texts: Sequence[Text]) -> None:
        spans = [TokenSpan(text.tokens, adapter) for text in texts]
        order = packed_order(spans)
        self.pack: Pack = pack([spans[at] for at in order], walk.backbone.device, None)
        self.texts = [texts[at] for at in order]
        starts, lengths = self.pack.own()
        place = sorted(range(len(order)), key=order.__getitem__)  # where text i lies in the row
        index = np.concatenate([np.arange(starts[at], starts[at] + lengths[at]) for at in place])
        self._index = torch.from_numpy(index).to(walk.backbone.device)

    def back(self, hidden: Tensor) -> Tensor:
        """Select `[tokens, hidden]` of the row in the order of the texts, without virtual tokens."""
        return hidden[self._index]


class MicroBatch:
    """Texts that go through the model together, to learn from.

    `loss`: hidden states `[tokens, hidden]` in the order of `texts`, without virtual tokens → a scalar, already divided by what
    the whole batch is divided by; it costs `loss_layers` layers. The `keep` last layers keep their activations, the others
    compute them again. `key`: of the dropout.
    """

    def __init__(
        self,
        walk: Walk,
        learnt: Learnt,
        texts: Sequence[Text],
        loss: Callable[[Tensor], Tensor],
        *,
        keep: int,
        key: DropoutKey | None,
        loss_layers: float = 0.5,
    ) -> None:
        self._walk, self._learnt, self._texts, self._key = walk, learnt, texts, key
        self._loss, self._loss_layers = loss, loss_layers
        self._recomputed = max(0, walk.layers - keep)
        self._pass: _Pass | None = None
        self._value: Tensor | None = None

    @property
    def value(self) -> float:
        """The loss. Known once its unit has run."""
        assert self._value is not None
        return float(self._value)

    def units(self, pace: Pace | None = None) -> Iterator[Unit]:
        """Yield its units, of as many layers as `pace` says; run each before asking for the next. When all have run, gradients
        are added to those of what is learnt, and of whatever the loss is made of."""
        pace = pace or Pace()
        last, tokens = self._walk.layers, sum(text.tokens for text in self._texts)
        end = 0
        while end < last:
            first, end = end, min(last, end + pace.layers("forward", tokens))
            yield pace.unit("forward", tokens, tokens * (end - first), partial(self._forward, first, end))
        yield Unit("loss", tokens, tokens * self._loss_layers, self._lose)
        assert self._pass is not None
        lowest, first = self._pass.lowest, last
        while first > lowest:
            a_layer = tokens * (_BACKWARD + (first <= self._recomputed))
            end, first = first, max(lowest, first - pace.layers("backward", a_layer))
            again = sum(i < self._recomputed for i in range(first, end))
            cost = tokens * (_BACKWARD * (end - first) + again)
            yield pace.unit("backward", tokens, cost, partial(self._backward, first, end, first == lowest))
        self._pass = None

    def _forward(self, first: int, end: int) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            if self._pass is None:
                self._pass = _Pass(self._walk, self._learnt, self._texts, self._key)
            for i in range(first, end):
                self._pass.forward(i, keep=i >= self._recomputed)
        _await_device(self._walk)

    def _lose(self) -> None:
        assert self._pass is not None
        with torch.inference_mode(False), torch.enable_grad():
            loss = self._loss(self._pass.finish())
            self._value = loss.detach()
            if loss.requires_grad:  # it does not if nothing is learnt below it
                loss.backward()
        _await_device(self._walk)

    def _backward(self, first: int, end: int, ended: bool) -> None:
        assert self._pass is not None
        with torch.inference_mode(False), torch.enable_grad():
            for i in reversed(range(first, end)):
                self._pass.backward(i)
            if ended:
                self._pass.hand_over()
        _await_device(self._walk)


class _Pass:
    """One forward and backward, cut before every layer."""

    def __init__(self, walk: Walk, learnt: Learnt, texts: Sequence[Text], key: DropoutKey | None) -> None:
        self._links: list[tuple[Tensor, Tensor]] = []  # what the adapter is made of, and what stands for it meanwhile
        self._row = _Row(walk, learnt.adapter(key).placed(self._stand_in), texts)
        self._walk = walk
        hidden, self._calls = walk.enter(self._row.pack, self._row.texts)
        self._cuts = [hidden]  # what goes into each layer and, at last, out of them
        self._kept: dict[int, Tensor] = {}  # what layers gave, with all that their backward needs

    def _stand_in(self, tensor: Tensor) -> Tensor:
        """Return a tensor that gathers the gradients of all layers, so that each is cut off from the others."""
        stand_in = _cut(tensor)
        self._links.append((tensor, stand_in))
        return stand_in

    @property
    def lowest(self) -> int:
        """The lowest layer that has a backward, once all layers have run; as many as there are layers if none has."""
        return next((i for i, cut in enumerate(self._cuts[1:]) if cut.requires_grad), len(self._cuts) - 1)

    def forward(self, layer: int, keep: bool) -> None:
        """Run a layer; `keep` what its backward needs."""
        out = self._run(layer)
        self._cuts.append(_cut(out))
        if keep:
            self._kept[layer] = out

    def finish(self) -> Tensor:
        """Return the hidden states `[tokens, hidden]` of the texts, in their order."""
        return self._row.back(self._walk.finish(self._row.pack, self._row.texts, self._cuts[-1]))

    def backward(self, layer: int) -> None:
        """Take the gradient of what a layer gave to what went into it, which is then let go."""
        gradient = self._cuts.pop().grad
        out = self._kept.pop(layer, None)
        out = self._run(layer) if out is None else out
        torch.autograd.backward(out, gradient)

    def hand_over(self) -> None:
        """Take the gradients of the stand-ins to what is learnt."""
        through = [(tensor, stand_in.grad) for tensor, stand_in in self._links if stand_in.grad is not None]
        torch.autograd.backward([tensor for tensor, _ in through], [gradient for _, gradient in through])

    def _run(self, layer: int) -> Tensor:
        with running(self._row.pack):
            return self._calls[layer](self._cuts[layer])


def _cut(tensor: Tensor) -> Tensor:
    """Return the same tensor cut off from its graph."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _await_device(walk: Walk) -> None:
    """Wait until the device has done what it was given: a unit ends with its work, so that its time is known."""
    if walk.backbone.device.type == "cuda":
        torch.cuda.synchronize(walk.backbone.device)


def check_units(
    walk: Walk, learnt: Learnt | None, texts: Sequence[Text], take: Callable[[Tensor], None], pace: Pace | None = None
) -> Iterator[Unit]:
    """Yield the units of a forward without gradients, as passes compute it (`learnt` None: of the backbone alone); the last one
    hands `take` the hidden states `[tokens, hidden]`, as a loss gets them. Run each before asking for the next."""
    pace, tokens = pace or Pace(), sum(text.tokens for text in texts)
    checked = _Check(walk, learnt, texts, take)
    end = 0
    while end < walk.layers:
        first, end = end, min(walk.layers, end + pace.layers("check", tokens))
        yield pace.unit("check", tokens, tokens * (end - first), partial(checked.run, first, end))


class _Check:
    """A forward without gradients, a few layers at a time."""

    def __init__(
        self, walk: Walk, learnt: Learnt | None, texts: Sequence[Text], take: Callable[[Tensor], None]
    ) -> None:
        self._walk, self._learnt, self._texts, self._take = walk, learnt, texts, take

    def run(self, first: int, end: int) -> None:
        """Run the layers from `first` to `end`; after the last, hand over the hidden states."""
        with torch.inference_mode(False), torch.no_grad():
            if not first:
                adapter = None if self._learnt is None else self._learnt.adapter(None)
                self._row = _Row(self._walk, adapter, self._texts)
                self._hidden, self._calls = self._walk.enter(self._row.pack, self._row.texts)
            with running(self._row.pack):
                for call in self._calls[first:end]:
                    self._hidden = call(self._hidden)
            if end == self._walk.layers:
                self._take(self._row.back(self._walk.finish(self._row.pack, self._row.texts, self._hidden)))
        _await_device(self._walk)
