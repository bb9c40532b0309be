"""Low-rank updates for a row that holds tokens of many adapters: sorted segments, as in Punica and S-LoRA.

Tokens are ordered by adapter, so each adapter present in the pass owns one contiguous slice, and a linear's update is one
pair of small matmuls per adapter, accumulated in place: y[s:e] += (x[s:e] Aᵀ) Bᵀ (LoRA, Hu et al. 2021; scaling is
folded into B at load). Work grows with the adapters in the pass, never with those loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Factors(NamedTuple):
    """One linear's update: `down` `[in, rank]` (a transposed view: CPU gemm is faster so), `up` `[rank, out]`, scaled."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A loaded LoRA. `factors[slot]` is its update of the backbone's linear `slot`, or None. `number` is never reused."""

    number: int
    factors: tuple[Factors | None, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for pair in self.factors if pair is not None for t in pair)


@dataclass(frozen=True, slots=True)
class Segments:
    """The adapters of a pass: `adapters[i]` owns the next `sizes[i]` rows; rows after the last have no adapter.

    `offsets`: ends of the segments, int32 on the device, when the pass has enough adapters of one rank for the grouped
    kernel; None otherwise.
    """

    adapters: tuple[Adapter, ...]
    sizes: list[int]
    rows: int
    offsets: Tensor | None

    @classmethod
    def of(
        cls, adapters: Sequence[Adapter], sizes: Sequence[int], rows: int, device: torch.device, group_from: int | None
    ) -> Segments:
        """`group_from`: how many adapters it takes before the grouped kernel wins on this device; None: it never does."""
        offsets = None
        if group_from is not None and len(adapters) >= group_from:
            offsets = torch.tensor(sizes, device=device).cumsum(0).int()
        rest = rows - sum(sizes)  # Tensor.split wants every row accounted for
        return cls(tuple(adapters), [*sizes, rest] if rest else [*sizes], rows, offsets)

    def add(self, slot: int, x: Tensor, y: Tensor) -> None:
        """Add every adapter's update for linear `slot`, in place: x `[1, rows, in]` → y `[1, rows, out]`.

        Raises `RuntimeError` when the linear does not see exactly the row: whose rows they are would be a guess.
        """
        if x.shape[:-1] != (1, self.rows):
            raise RuntimeError(f"linear {slot} sees {tuple(x.shape[:-1])} rows, the packed row has {self.rows} tokens")
        pairs = [adapter.factors[slot] for adapter in self.adapters]
        if self.offsets is not None and (same := _one_rank(pairs)) is not None:
            return _grouped(same, self.offsets, sum(self.sizes[: len(pairs)]), x[0], y[0])
        for pair, xs, ys in zip(pairs, torch.split(x[0], self.sizes), torch.split(y[0], self.sizes), strict=False):
            if pair is not None:
                ys.addmm_(xs @ pair.down, pair.up)
        return None


def _one_rank(pairs: Sequence[Factors | None]) -> list[Factors] | None:
    """The pairs, if all are there and of one rank that the grouped kernel's 16-byte rows allow; else None."""
    present = [pair for pair in pairs if pair is not None]
    ranks = {pair.up.shape[0] for pair in present}
    return present if len(present) == len(pairs) and len(ranks) == 1 and ranks.pop() % 8 == 0 else None


def _grouped(pairs: Sequence[Factors], offsets: Tensor, rows: int, x: Tensor, y: Tensor) -> None:
    """The same update with two grouped matmuls, whatever the number of adapters."""
    low = functional.grouped_mm(x[:rows], torch.stack([pair.down for pair in pairs]), offs=offsets)
    y[:rows] += functional.grouped_mm(low, torch.stack([pair.up for pair in pairs]), offs=offsets)
