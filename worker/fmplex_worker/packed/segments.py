"""Segments: adapters for a row that holds tokens of many of them, sorted, as in Punica and S-LoRA.

Tokens are ordered by adapter, so each adapter present in the pass owns one contiguous slice [s:e], and changes a linear layer
there and nowhere else, in place (`add`) or, while an adapter is trained, out of place (`updated`):

- LoRA (Hu et al. 2021): y[s:e] += (x[s:e] Aᵀ) Bᵀ, one pair of small matmuls; scaling is folded into B at load.
- (IA)³ (Liu et al. 2022): y[s:e] *= l or, in feed-forward blocks, x[s:e] *= l before the layer, on a copy of x (whoever else
  reads x must not see it).

Work grows with the adapters in the pass, never with those loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fmplex_worker.packed.placing import Place


class Factors(NamedTuple):
    """One linear's update: `down` `[in, rank]` (a transposed view: CPU gemm is faster so), `up` `[rank, out]`, scaled."""

    down: Tensor
    up: Tensor


class Scale(NamedTuple):
    """One linear's scale: its output is multiplied with `by` `[out]`."""

    by: Tensor


# What a LoRA reads of the input of linear `slot` while it is trained: x `[rows, in]` with some of it left out.
Dropout = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A loaded adapter of any kind. `number` is never reused.

    `updates[slot]` is what happens to the output of the backbone's linear `slot`, or None; empty when no linear is changed,
    and then the adapter needs no segment. `inputs[slot]` `[in]` scales that linear's input. `prompt` `[virtual tokens, width]`
    goes before every text; `tokens` is added to the embedding of token i as `down[i] @ up`. `dropout`: only while it is trained.
    """

    number: int
    updates: tuple[Factors | Scale | None, ...] = ()
    inputs: Mapping[int, Tensor] = field(default_factory=dict)
    prompt: Tensor | None = None
    tokens: Factors | None = None
    dropout: Dropout | None = None

    @property
    def segment(self) -> int:
        """Its number, as that of its segment in a pass; 0 if it changes no linear layer and needs none."""
        return self.number if self.updates else 0

    @property
    def virtual(self) -> int:
        """Number of virtual tokens that it puts before a text."""
        return 0 if self.prompt is None else self.prompt.shape[0]

    @property
    def embeds(self) -> bool:
        """True if it changes what goes into the first layer."""
        return self.prompt is not None or self.tokens is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that it holds."""
        held = [tensor for part in (*self.updates, self.tokens) if part is not None for tensor in part]
        held += self.inputs.values()
        return sum(tensor.nbytes for tensor in (*held, *(() if self.prompt is None else (self.prompt,))))

    def placed(self, place: Place) -> Adapter:
        """Return it with its tensors moved by `place`."""
        return replace(
            self,
            updates=tuple(None if update is None else type(update)(*map(place, update)) for update in self.updates),
            inputs={slot: place(by) for slot, by in self.inputs.items()},
            prompt=None if self.prompt is None else place(self.prompt),
            tokens=None if self.tokens is None else Factors(*map(place, self.tokens)),
        )


@dataclass(frozen=True, slots=True)
class Segments:
    """The adapters of a pass: `adapters[i]` owns the next `sizes[i]` rows; rows after the last have no adapter.

    `offsets`: ends of the segments, int32 on the device, when the pass has enough adapters of one rank for the grouped
    kernel; None otherwise. `inputs`: whether any adapter scales inputs.
    """

    adapters: tuple[Adapter, ...]
    sizes: list[int]
    rows: int
    offsets: Tensor | None
    inputs: bool

    @classmethod
    def of(
        cls, adapters: Sequence[Adapter], sizes: Sequence[int], rows: int, device: torch.device, group_from: int | None
    ) -> Segments:
        """Lay out the segments of a pass of `rows` tokens. `group_from`: the number of adapters from which the grouped kernel
        wins on this device; None: it never does."""
        offsets = None
        if group_from is not None and len(adapters) >= group_from:
            offsets = torch.tensor(sizes, device=device).cumsum(0).int()
        rest = rows - sum(sizes)  # Tensor.split wants every row accounted for
        every = [*sizes, rest] if rest else [*sizes]
        return cls(tuple(adapters), every, rows, offsets, any(adapter.inputs for adapter in adapters))

    @classmethod
    def of_rows(cls, owners: Sequence[Adapter | None], device: torch.device) -> Segments:
        """Lay out the segments of single rows in packed order, each with the adapter that owns it."""
        runs = [(owner, len([*rows])) for owner, rows in groupby(owners) if owner is not None and owner.segment]
        return cls.of([owner for owner, _ in runs], [size for _, size in runs], len(owners), device, None)

    def scaled(self, slot: int, x: Tensor) -> Tensor:
        """Scale x `[1, rows, in]` as linear `slot` takes it: return itself, or a copy where an adapter scales its rows."""
        found = [(i, adapter.inputs[slot]) for i, adapter in enumerate(self.adapters) if slot in adapter.inputs]
        if not found:
            return x
        self._check(slot, x)
        parts = [*torch.split(x[0], self.sizes)]
        for i, by in found:
            parts[i] = parts[i] * by
        return torch.cat(parts).unsqueeze(0)

    def add(self, slot: int, x: Tensor, y: Tensor) -> None:
        """Apply every adapter's update of linear `slot`, in place: x `[1, rows, in]` → y `[1, rows, out]`.

        Raises `RuntimeError` when the linear does not see exactly the row: whose rows they are would be a guess.
        """
        self._check(slot, x)
        updates = [adapter.updates[slot] for adapter in self.adapters]
        if self.offsets is not None and (same := _one_rank(updates)) is not None:
            return _grouped(same, self.offsets, sum(self.sizes[: len(updates)]), x[0], y[0])
        for update, xs, ys in zip(updates, torch.split(x[0], self.sizes), torch.split(y[0], self.sizes), strict=False):
            if update is not None:
                apply_update(update, xs, ys)
        return None

    def updated(self, slot: int, x: Tensor, y: Tensor) -> Tensor:
        """Do as `add`, but leave y as it is and return another, which can be differentiated."""
        self._check(slot, x)
        updates = [adapter.updates[slot] for adapter in self.adapters]
        if not any(updates):
            return y
        rows, outs = torch.split(x[0], self.sizes), [*torch.split(y[0], self.sizes)]
        dropping = any(adapter.dropout for adapter in self.adapters)
        if self.offsets is not None and not dropping and (same := _one_rank(updates)) is not None:
            owned = sum(self.sizes[: len(updates)])
            return torch.cat([y[0, :owned] + _product(same, self.offsets, x[0, :owned]), y[0, owned:]]).unsqueeze(0)
        for i, (adapter, update) in enumerate(zip(self.adapters, updates, strict=True)):
            if update is not None:
                outs[i] = updated(update, adapter.dropout(slot, rows[i]) if adapter.dropout else rows[i], outs[i])
        return (outs[0] if len(outs) == 1 else torch.cat(outs)).unsqueeze(0)

    def _check(self, slot: int, x: Tensor) -> None:
        if x.shape[:-1] != (1, self.rows):
            raise RuntimeError(f"linear {slot} sees {tuple(x.shape[:-1])} rows, the packed row has {self.rows} tokens")


def apply_update(update: Factors | Scale, x: Tensor, y: Tensor) -> None:
    """Apply one linear's update in place: x `[rows, in]` → y `[rows, out]`."""
    if isinstance(update, Factors):
        y.addmm_(x @ update.down, update.up)
    else:
        y.mul_(update.by)


def updated(update: Factors | Scale, x: Tensor, y: Tensor) -> Tensor:
    """Do as `apply_update`, but leave y as it is and return another, which can be differentiated."""
    return torch.addmm(y, x @ update.down, update.up) if isinstance(update, Factors) else y * update.by


def _one_rank(updates: Sequence[Factors | Scale | None]) -> list[Factors] | None:
    """Return the updates, if all are LoRAs of one rank that the grouped kernel's 16-byte rows allow; else None."""
    pairs = [update for update in updates if isinstance(update, Factors)]
    ranks = {pair.up.shape[0] for pair in pairs}
    return pairs if len(pairs) == len(updates) and len(ranks) == 1 and ranks.pop() % 8 == 0 else None


def _grouped(pairs: Sequence[Factors], offsets: Tensor, rows: int, x: Tensor, y: Tensor) -> None:
    """Apply the updates in place with two grouped matmuls, whatever the number of adapters."""
    y[:rows] += _product(pairs, offsets, x[:rows])


def _product(pairs: Sequence[Factors], offsets: Tensor, x: Tensor) -> Tensor:
    """Multiply x `[rows, in]` with the factors of each segment → `[rows, out]`."""
    low = functional.grouped_mm(x, torch.stack([pair.down for pair in pairs]), offs=offsets)
    return functional.grouped_mm(low, torch.stack([pair.up for pair in pairs]), offs=offsets)
