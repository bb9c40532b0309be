"""Keys and values of generating rows: one slab a row, all from one pool of bounded bytes.

A row owns one contiguous slab, so that attention reads views and never gathers; slabs come in few sizes and are used again. A
slab that is too small is replaced by a larger one and copied: sizes grow by a third or a half, so a token is copied twice at
most on average.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 32  # tokens of the smallest slab


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token takes: keys and values of `heads` × `size` in every layer."""

    layers: int
    heads: int
    size: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.heads * self.size * self.dtype.itemsize

    def slab_bytes(self, tokens: int) -> int:
        """Bytes of the smallest slab for so many tokens."""
        return capacity_for(tokens) * self.token_bytes


def capacity_for(tokens: int) -> int:
    """Tokens of the smallest slab that holds `tokens`: 32, 48, 64, 96, 128, 192, …"""
    capacity = _LEAST
    while capacity < tokens:
        capacity += capacity // 2 if capacity & (capacity - 1) == 0 else capacity // 3
    return capacity


@dataclass(slots=True, eq=False)
class Slab:
    """`data` `[layers, 2, heads, capacity, size]`: keys and values by layer."""

    data: Tensor
    nbytes: int

    @property
    def capacity(self) -> int:
        return self.data.shape[3]

    def copy_from(self, other: Slab, tokens: int) -> None:
        """The first so many tokens of another slab."""
        self.data[:, :, :, :tokens] = other.data[:, :, :, :tokens]


class KvPool:
    """Takes and gives slabs, at most `budget` bytes of them. Any thread.

    `reclaim` frees slabs that nobody needs (it is called with bytes, and gives back slabs until so many are free or there are
    none): what rows take has precedence. While a row moves to a larger slab it has both, for the length of a copy.
    """

    def __init__(self, shape: KvShape, device: torch.device, budget: int) -> None:
        self.shape = shape
        self.budget = budget
        self.reclaim: Callable[[int], None] = lambda _: None
        self._device = device
        self._used = 0
        self._spare: dict[int, list[Slab]] = {}  # capacity -> slabs to use again
        self._spare_bytes = 0
        self.lock = threading.RLock()  # of the cache of prefixes too

    @property
    def used(self) -> int:
        """Bytes of the slabs that somebody has."""
        return self._used

    def take(self, tokens: int) -> Slab:
        """A slab for so many tokens; what is in it is not defined."""
        capacity = capacity_for(tokens)
        nbytes = capacity * self.shape.token_bytes
        with self.lock:
            if self._used + nbytes > self.budget:
                self.reclaim(self._used + nbytes - self.budget)
            self._used += nbytes
            if capacity in self._spare:
                return self._pop(capacity)
            self._trim()
        s = self.shape
        data = torch.empty(s.layers, 2, s.heads, capacity, s.size, dtype=s.dtype, device=self._device)
        return Slab(data, nbytes)

    def give(self, slab: Slab) -> None:
        """Nobody has it any more."""
        with self.lock:
            self._used -= slab.nbytes
            self._spare.setdefault(slab.capacity, []).append(slab)
            self._spare_bytes += slab.nbytes
            self._trim()

    def grown(self, slab: Slab, tokens: int, used: int) -> Slab:
        """A slab for `tokens`, with the first `used` tokens of this one, which is given back."""
        if slab.capacity >= tokens:
            return slab
        larger = self.take(tokens)
        larger.copy_from(slab, used)
        self.give(slab)
        return larger

    def _trim(self) -> None:
        """Spare slabs count too: what lies about must not outgrow the budget."""
        while self._spare and self._used + self._spare_bytes > self.budget:
            self._pop(max(self._spare))

    def _pop(self, capacity: int) -> Slab:
        slabs = self._spare[capacity]
        slab = slabs.pop()
        self._spare_bytes -= slab.nbytes
        if not slabs:
            del self._spare[capacity]
        return slab
