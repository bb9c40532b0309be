"""How much goes through the backbone at once in a training: micro-batches of so many tokens, of which some layers compute again.

When the device runs out of memory, what did not fit is done again with less at once: first more layers compute again, which
changes no result, then micro-batches are halved.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from fmplex_broker.errors import JobFailed
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.texts import Text
from fmplex_worker.packed.memory import out_of_memory
from fmplex_worker.packed.row import TokenSpan, pack, packed_order
from fmplex_worker.training import MemoryNeed, Unit
from fmplex_worker.tuning.footprint import Footprint
from fmplex_worker.tuning.learnt import Learnt
from fmplex_worker.tuning.pace import Pace
from fmplex_worker.tuning.units import check_units
from fmplex_worker.tuning.walk import Walk

TOKENS = 512  # of a micro-batch: more make a forward no cheaper a token, but every unit longer

T = TypeVar("T")
Item = TypeVar("Item")


class Room:
    """The room of one training. `walk`: the backbone layer by layer; None: only as a whole. `memory`: bytes that it may take by
    its `footprint`; None: no limit. `tokens`: of a micro-batch; `pace`: of its units.

    Raises `TooLarge`: it takes more in any case.
    """

    def __init__(
        self, backbone: Backbone, walk: Walk | None, footprint: Footprint | None = None, memory: int | None = None
    ) -> None:
        self.backbone, self.walk = backbone, walk
        self.tokens = TOKENS
        self.pace = Pace()
        self._footprint = footprint or Footprint(0)
        self._most = 0 if walk is None else walk.layers  # that may keep their activations, if there is memory
        self._keep = self._most if memory is None else self._footprint.layers_kept(memory)
        self._running: int | None = None  # layers that keep theirs in the micro-batch under way
        self._lock = threading.Lock()  # who limits it is another thread than who runs it
        self._short = False

    def begin(self) -> int:
        """Begin a micro-batch; return how many of its layers keep their activations."""
        with self._lock:
            self._running = self._keep
            return self._keep

    def end(self) -> None:
        """End the micro-batch: its activations are gone."""
        self._running = None

    @property
    def needs(self) -> MemoryNeed:
        """Bytes that it takes; see `Training.needs`."""
        return self._footprint.need(0 if self.walk is None else self.walk.layers)

    @property
    def holds(self) -> int:
        """Bytes that it takes now at most; see `Training.holds`."""
        with self._lock:
            return self._footprint.of(max(self._keep, self._running or 0))

    def limit(self, nbytes: int) -> None:
        """Take no more than so many bytes; see `Training.limit`."""
        keep = self._footprint.layers_kept(nbytes)
        with self._lock:
            self._keep = min(self._most, keep)

    def again(self, units: Callable[[], Generator[Unit, None, T]], whole: bool = False) -> Generator[Unit, None, T]:
        """Yield units until all of them have run; out of memory: from the first on, with less at once. Returns what they do.

        `whole`: they are one micro-batch, whatever it takes. Raises `JobFailed` when there is no less.
        """
        while True:
            self._short = False
            self.end()
            course = units()
            try:
                while not self._short:
                    unit = next(course)
                    yield unit._replace(run=partial(self._run, unit.run))
            except StopIteration as end:
                done: T = end.value
                return done
            course.close()
            self._shrink(whole)

    def parts(self, items: Sequence[Item], tokens: Callable[[Item], int]) -> list[list[Item]]:
        """Cut items, in their order, into micro-batches; an item larger than one is alone."""
        made: list[list[Item]] = []
        used = 0
        for item in items:
            size = tokens(item)
            if not made or used + size > self.tokens:
                made.append([])
                used = 0
            made[-1].append(item)
            used += size
        return made

    def states(self, learnt: Learnt | None, texts: Sequence[Text], take: Callable[[Tensor], None]) -> Iterator[Unit]:
        """Yield the units that compute hidden states `[tokens, hidden]` of texts, in their order, without gradients."""
        if self.walk is not None:
            yield from check_units(self.walk, learnt, texts, take, self.pace)
        else:
            tokens = sum(text.tokens for text in texts)
            cost = tokens * len(self.backbone.targets) / 6  # about six linears a layer
            yield Unit("check", tokens, cost, partial(self._encode, texts, take))

    def _run(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as e:
            if not out_of_memory(e):
                raise
            self._short = True
        if self._short and self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()

    def _shrink(self, whole: bool) -> None:
        if self._keep:
            with self._lock:
                self._keep = self._most = 0
        elif self.tokens > 1 and not whole:
            self.tokens //= 2
        else:
            raise JobFailed(
                "one text of this training does not fit into the device's memory; shorten or cut texts, or use smaller batches"
            )

    @torch.no_grad()
    def _encode(self, texts: Sequence[Text], take: Callable[[Tensor], None]) -> None:
        spans = [TokenSpan(text.tokens, None) for text in texts]
        order = packed_order(spans)
        row = pack([spans[at] for at in order], self.backbone.device, None)
        hidden = self.backbone.encode(row, [texts[at] for at in order])
        place = sorted(range(len(order)), key=order.__getitem__)  # where text i lies in the row
        take(torch.cat([hidden[row.starts[at] : row.starts[at] + row.lengths[at]] for at in place]))
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)  # a unit has ended when the device has done it
