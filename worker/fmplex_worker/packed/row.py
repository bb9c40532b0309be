"""The packed row: many texts as one row of tokens, ordered so that every adapter owns one contiguous slice.

A batch is `[1, total tokens]` with position ids that restart at every text; no padding is ever computed. Within one
adapter the texts are ordered by length, so that texts of equal length are neighbours and share one attention call. The
virtual tokens of a soft prompt are the first tokens of each of its texts: attention sees them, heads do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from fmplex_worker.kvcache.pool import Slab
from fmplex_worker.packed.segments import Adapter, Segments


class Run(NamedTuple):
    """Neighbouring whole texts of one length: `texts` of `length` tokens each, from token `start` of the row."""

    start: int
    texts: int
    length: int


class CachedSpan(NamedTuple):
    """A part of a sequence: `length` tokens from token `start` of the row on, which go on from `past` earlier ones of their
    sequence, whose keys and values are in `slab`; theirs go there too."""

    start: int
    length: int
    past: int
    slab: Slab


@dataclass(frozen=True, slots=True)
class Pack:
    """Layout of a row: `lengths[i]` tokens from `starts[i]` on belong to the i-th packed text, whose adapter is `adapters[i]`;
    `pasts[i]` earlier tokens of it are in a slab. `masks`: those that attention keeps from layer to layer.

    `boundaries` is `[texts + 1]` int32 on the device, for varlen kernels. `embedded`: whether an adapter puts in virtual
    tokens or changes embeddings.
    """

    tokens: int
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    pasts: tuple[int, ...]
    runs: tuple[Run | CachedSpan, ...]
    boundaries: torch.Tensor
    adapters: tuple[Adapter | None, ...]
    segments: Segments
    embedded: bool
    masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)

    @property
    def has_cached_spans(self) -> bool:
        """True if any text goes on from a slab."""
        return any(isinstance(run, CachedSpan) for run in self.runs)

    def own(self) -> tuple[Sequence[int], Sequence[int]]:
        """Return the starts and lengths of the texts without virtual tokens, which heads read."""
        if not self.embedded:
            return self.starts, self.lengths
        leads = [
            adapter.virtual if adapter is not None and not past else 0
            for adapter, past in zip(self.adapters, self.pasts, strict=True)
        ]
        starts = [start + lead for start, lead in zip(self.starts, leads, strict=True)]
        return starts, [length - lead for length, lead in zip(self.lengths, leads, strict=True)]


class TokenSpan(NamedTuple):
    """A text to pack: its `length` in tokens, without virtual ones, and the adapter that applies to it. With a `slab` it goes on
    from `past` earlier tokens (virtual ones among them)."""

    length: int
    adapter: Adapter | None
    past: int = 0
    slab: Slab | None = None

    @property
    def total(self) -> int:
        """Length in the row: with the virtual tokens that are put before it."""
        return self.length if self.adapter is None or self.past else self.length + self.adapter.virtual

    @property
    def segment(self) -> int:
        """Number of the adapter whose segment it belongs to; 0: no adapter changes linear layers for it."""
        return self.adapter.segment if self.adapter is not None else 0


def packed_order(texts: Sequence[TokenSpan]) -> list[int]:
    """Order texts for packing: by adapter (texts without one last), then by length."""
    numbers = [t.segment for t in texts]
    # Whole texts of one length are neighbours, and run together.
    continued = [t.slab is not None for t in texts]
    return sorted(range(len(texts)), key=lambda i: (numbers[i] == 0, numbers[i], continued[i], texts[i].total))


def pack(texts: Sequence[TokenSpan], device: torch.device, group_from: int | None) -> Pack:
    """Lay out texts that are already in `packed_order`; see `Segments` for `group_from`."""
    lengths = tuple(t.total for t in texts)
    bounds = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=bounds[1:])
    sizes: list[int] = []
    adapters: list[Adapter] = []
    for text, length in zip(texts, lengths, strict=True):
        if text.adapter is None or not text.segment:
            break
        if adapters and adapters[-1] is text.adapter:
            sizes[-1] += length
        else:
            adapters.append(text.adapter)
            sizes.append(length)
    tokens = int(bounds[-1])
    return Pack(
        tokens=tokens,
        lengths=lengths,
        starts=tuple(bounds[:-1].tolist()),
        pasts=tuple(t.past for t in texts),
        runs=_runs(texts, lengths),
        boundaries=torch.from_numpy(bounds).to(device),
        adapters=tuple(text.adapter for text in texts),
        segments=Segments.of(adapters, sizes, tokens, device, group_from),
        embedded=any(t.adapter is not None and t.adapter.embeds for t in texts),
    )


def _runs(texts: Sequence[TokenSpan], lengths: Sequence[int]) -> tuple[Run | CachedSpan, ...]:
    runs: list[Run | CachedSpan] = []
    start = 0
    for text, length in zip(texts, lengths, strict=True):
        last = runs[-1] if runs else None
        if text.slab is not None:
            runs.append(CachedSpan(start, length, text.past, text.slab))
        elif isinstance(last, Run) and last.length == length:
            runs[-1] = last._replace(texts=last.texts + 1)
        else:
            runs.append(Run(start, 1, length))
        start += length
    return tuple(runs)


# Set inside the device thread's function only: keyword arguments do not reach linears, and module state is shared.
_PASS: ContextVar[Pack] = ContextVar("fmplex_pass")


@contextmanager
def running(pack: Pack) -> Iterator[None]:
    """Make `pack` what attention and linears see until the block ends, however it ends."""
    token = _PASS.set(pack)
    try:
        yield
    finally:
        _PASS.reset(token)


def current() -> Pack:
    """Return the pass that runs in this context. Raises `LookupError` outside `running`."""
    return _PASS.get()
