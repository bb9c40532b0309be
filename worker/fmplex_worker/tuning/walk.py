"""A model block by block: what goes into the first block, each block by itself, and what comes after the last.

The model's own forward is run without its blocks: in a shell of it, made of shallow copies of the modules around the blocks, in
whose place stand-ins write down with what they were called. Weights are shared and nothing that serves is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fmplex_broker.errors import InvalidInput
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.texts import Text
from fmplex_worker.packed.row import Pack, TokenSpan, pack, running

_PROBE = (3, 5)  # tokens of the texts by which a walk is checked


class Call(NamedTuple):
    """One call of a block in the forward of the model, but for the hidden states that go into it."""

    block: nn.Module
    rest: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Run the block: hidden `[1, tokens, width]` → as many."""
        given = self.whole(hidden)
        hidden = given[0] if isinstance(given, tuple) else given
        return hidden

    def whole(self, hidden: Tensor) -> Any:
        """Run the block and return all that it gives: hidden states, or a tuple that begins with them."""
        return self.block(hidden, *self.rest, **self.options)


class Entry(NamedTuple):
    """The beginning of a walk: `hidden` `[1, tokens, width]` goes into the first of the `calls`."""

    hidden: Tensor
    calls: Sequence[Call]


class Walk:
    """The blocks of a backbone, one by one. Call it on the device thread, between passes.

    Raises `InvalidInput` if the model is more than its blocks one after the other: checked once, bit by bit.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._visit = _Visit()
        path, _ = blocks_of(backbone.model)
        self._shell = replace(backbone, model=_shell(backbone.model, path, self._visit))
        self._beside: tuple[Any, ...] | None = (
            None  # what blocks give beside hidden states; None: those alone, in no tuple
        )
        self.layers = self._check()

    def enter(self, row: Pack, texts: list[Text]) -> Entry:
        """Compute what goes into the first block, for texts in packed order, and how each block is to be called."""
        calls: list[Call] = []
        entered: list[Tensor] = []
        beside = self._beside

        def visitor(call: Call, hidden: Tensor) -> Any:
            nonlocal beside
            if not calls and beside and any(part is not None for part in beside):
                with torch.no_grad():  # T5: the first block makes the biases that the others are given
                    beside = call.whole(hidden)[1:]
            calls.append(call)
            entered.append(hidden)
            return hidden if beside is None else (hidden, *beside)

        with self._visit.by(visitor):
            self._shell.encode(row, texts)
        return Entry(entered[0], calls)

    def finish(self, row: Pack, texts: list[Text], hidden: Tensor) -> Tensor:
        """Compute what comes after the last block: hidden `[1, tokens, width]` → hidden states `[tokens, hidden]`, as
        `Backbone.encode` has them."""
        given = hidden if self._beside is None else (hidden, *(None for _ in self._beside))
        with self._visit.by(lambda _call, _hidden: given):
            return self._shell.encode(row, texts)

    @property
    def logits_layers(self) -> float:
        """Cost of the logits of a token, in layers; 0 without a language-model head."""
        head = self.backbone.lm_head
        _, blocks = blocks_of(self.backbone.model)
        a_layer = sum(p.numel() for p in blocks.parameters()) / len(blocks)
        return 0.0 if head is None else head.vocabulary * self.backbone.hidden / a_layer

    def _check(self) -> int:
        """Check that the walk gives what the model gives. Returns the number of blocks it runs."""
        tokens = np.arange(sum(_PROBE)) % self.backbone.embeddings.num_embeddings
        texts = [Text.of_ids(part) for part in np.split(tokens, [_PROBE[0]])]
        row = pack([TokenSpan(text.tokens, None) for text in texts], self.backbone.device, None)
        with torch.inference_mode(False), torch.no_grad():
            whole = self.backbone.encode(row, texts)
            self._learn_form(row, texts)
            hidden, calls = self.enter(row, texts)
            with running(row):
                for call in calls:
                    hidden = call(hidden)
            if not torch.equal(self.finish(row, texts, hidden), whole):
                raise _untrained(self.backbone)
        return len(calls)

    def _learn_form(self, row: Pack, texts: list[Text]) -> None:
        """Learn what blocks give beside hidden states."""

        def visitor(call: Call, hidden: Tensor) -> Any:
            given = call.whole(hidden)
            self._beside = given[1:] if isinstance(given, tuple) else None
            return given

        with self._visit.by(visitor):
            self._shell.encode(row, texts)


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return where the blocks of a model are, and them: the largest of its lists. Embeddings and projections lie outside."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))


def _untrained(backbone: Backbone) -> InvalidInput:
    return InvalidInput(
        f"a {backbone.family.model_type} like {backbone.spec.model!r} cannot be trained here: it does more than its layers "
        "one after the other; train an adapter with PEFT, and deploy that",
        field="model",
    )


class _Visit:
    """What the stand-ins of a shell give while its forward runs."""

    def __init__(self) -> None:
        self.visitor: Callable[[Call, Tensor], Any] | None = None

    @contextmanager
    def by(self, visitor: Callable[[Call, Tensor], Any]) -> Iterator[None]:
        """Let them give what `visitor` returns, until the block ends."""
        self.visitor = visitor
        try:
            yield
        finally:
            self.visitor = None


class _StandIn(nn.Module):
    """What stands in the shell for a block."""

    def __init__(self, block: nn.Module, visit: _Visit) -> None:
        super().__init__()
        self._stands_for = (block,)  # in a tuple, it is no module of this one
        self._visit = visit

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the block: some models ask it which attention it has."""
        return getattr(vars(self)["_stands_for"][0], name)

    def forward(self, hidden: Tensor, *rest: Any, **options: Any) -> Any:
        """Take the call of the block."""
        assert self._visit.visitor is not None
        return self._visit.visitor(Call(self._stands_for[0], rest, options), hidden)


def _shell(model: nn.Module, path: str, visit: _Visit) -> nn.Module:
    """Copy the modules on the way to the blocks at `path`, and put stand-ins where those are."""
    name, _, deeper = path.partition(".")
    shell = copy.copy(model)
    vars(shell)["_modules"] = dict(vars(model)["_modules"])  # a shallow copy has the very same dictionary
    child = model.get_submodule(name)
    if deeper:
        shell.add_module(name, _shell(child, deeper, visit))
    else:
        assert isinstance(child, nn.ModuleList)
        shell.add_module(name, nn.ModuleList(_StandIn(block, visit) for block in child))
    return shell
