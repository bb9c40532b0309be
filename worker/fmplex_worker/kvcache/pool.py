"""Keys and values of sequences: one slab a sequence, all from one pool of bounded bytes.

A sequence owns one contiguous slab, so that attention reads views and never gathers; slabs come in few sizes, all from one
arena. A slab that is too small is replaced by a larger one and copied: sizes grow by a third or a half, so a token is copied
twice at most on average.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fmplex_broker.errors import InvalidInput
from fmplex_worker.kvcache.arena import Arena

_LEAST = 32  # tokens of the smallest slab


@dataclass(frozen=True, slots=True)
class KvShape:
    """Shape of one token's keys and values: `heads` × `size` each, in every layer."""

    layers: int
    heads: int
    size: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.layers * self.heads * self.size * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class KvBudget:
    """Sizes of slabs within `nbytes`."""

    shape: KvShape
    nbytes: int

    @property
    def tokens(self) -> int:
        """Tokens of the longest sequence that fits."""
        return self.nbytes // self.shape.token_bytes

    def capacity(self, tokens: int) -> int:
        """Return the tokens of the smallest slab for so many; the largest slab is the budget, whatever comes next by size."""
        return max(tokens, min(capacity_for(tokens), self.tokens))

    def slab_bytes(self, tokens: int) -> int:
        """Return the bytes of the smallest slab for so many tokens."""
        return self.capacity(tokens) * self.shape.token_bytes


def capacity_for(tokens: int) -> int:
    """Return the tokens of the smallest slab that holds `tokens`: 32, 48, 64, 96, 128, 192, …"""
    capacity = _LEAST
    while capacity < tokens:
        capacity += capacity // 2 if capacity & (capacity - 1) == 0 else capacity // 3
    return capacity


@dataclass(slots=True, eq=False)
class Slab:
    """Memory of one sequence: `data` `[layers, 2, heads, capacity, size]`, keys and values by layer. It begins at `start` of the
    arena; None: it is not from there."""

    data: Tensor
    nbytes: int
    start: int | None

    @property
    def capacity(self) -> int:
        """Tokens that it holds at most."""
        return self.data.shape[3]

    def copy_from(self, other: Slab, tokens: int) -> None:
        """Copy the first so many tokens of another slab."""
        self.data[:, :, :, :tokens] = other.data[:, :, :, :tokens]


class KvPool:
    """Allocates and frees slabs, at most `budget` bytes of them. Any thread. Raises `InvalidInput` if the device has not so much
    memory.

    `reclaim` frees slabs that nobody needs (it is called with bytes, frees slabs until so many are free or there are none, and
    says whether it freed any): sequences have precedence. While a sequence moves to a larger slab it has both, for the length of
    a copy. Where the arena has only holes that are too small, a slab comes from elsewhere.
    """

    def __init__(self, shape: KvShape, device: torch.device, budget: int) -> None:
        self.shape = shape
        self.budget = budget
        self.slabs = KvBudget(shape, budget)
        self.reclaim: Callable[[int], bool] = lambda _: False
        self._device = device
        self._used = 0
        self.lock = threading.RLock()  # the prefix cache's too
        try:
            self._arena = Arena(budget, device, self.lock)
        except RuntimeError as e:
            raise InvalidInput(
                f"{budget} bytes for keys and values are more than {device} has; lower worker.kv_bytes",
                field="worker.kv_bytes",
            ) from e

    def warm_up(self) -> None:
        """Take all memory for slabs from the system, in the background: they will be needed soon."""
        self._arena.touch_all()

    @property
    def used(self) -> int:
        """Bytes of the slabs that somebody has."""
        return self._used

    def allocate(self, tokens: int) -> Slab:
        """Allocate a slab for so many tokens; its content is not defined."""
        s, capacity = self.shape, self.slabs.capacity(tokens)
        nbytes = capacity * s.token_bytes
        with self.lock:
            if self._used + nbytes > self.budget:
                self.reclaim(self._used + nbytes - self.budget)
            found = self._arena.allocate(nbytes)
            while found is None and self.reclaim(nbytes):
                found = self._arena.allocate(nbytes)
            start, raw = found or (None, torch.empty(nbytes, dtype=torch.uint8, device=self._device))
            self._used += nbytes
        return Slab(raw.view(s.dtype).view(s.layers, 2, s.heads, capacity, s.size), nbytes, start)

    def free(self, slab: Slab) -> None:
        """Free a slab that nobody has any more."""
        with self.lock:
            self._used -= slab.nbytes
            if slab.start is not None:
                self._arena.free(slab.start, slab.nbytes)

    def grow(self, slab: Slab, tokens: int, used: int) -> Slab:
        """Return a slab for `tokens`, with the first `used` tokens of this one, which is freed if it is too small."""
        if slab.capacity >= tokens:
            return slab
        larger = self.allocate(tokens)
        larger.copy_from(slab, used)
        self.free(slab)
        return larger
