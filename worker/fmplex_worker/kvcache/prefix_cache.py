"""Prompts whose keys and values are kept, so that the next prompt that begins alike skips that part.

By vFM and digest of its version: never across adapters or tenants. What is kept are the slabs of rows, of those that still
run and of those that have ended; a hit copies what it can use, which costs about a hundredth of computing it. Ended ones go,
the least recently used first, as soon as a running row needs the bytes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fmplex_worker.kvcache.pool import KvPool, Slab

BLOCK = 32  # tokens: prefixes are found in steps of so many

Scope = tuple[str, str]  # digest of a version, and the vFM: another's prompts must not show, not even by their speed
_Key = tuple[Scope, bytes]


@dataclass(slots=True, eq=False)
class Kept:
    """The tokens whose keys and values `slab` holds. `keys` are those of its blocks that lead to it."""

    scope: Scope
    slab: Slab
    keys: set[_Key] = field(default_factory=set)


class PrefixCache:
    """Any thread; but only the device thread takes slabs from the pool, and it is the one that reads what it finds."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._lock = pool.lock
        self._index: dict[_Key, tuple[Kept, int]] = {}  # -> tokens of the slab up to the end of that block
        self._ended: OrderedDict[int, Kept] = OrderedDict()  # by id; least recently used first
        self.asked = 0  # tokens of prompts that were looked up
        self.found = 0  # … and did not have to be computed
        pool.reclaim = self._reclaim

    def take(self, scope: Scope, tokens: Sequence[int], virtual: int = 0) -> tuple[Slab, int]:
        """A slab for a row with a soft prompt of `virtual` tokens and these; and how many of these it has already, because others
        have computed the same prefix: at least one is left to compute."""
        with self._lock:
            self.asked += len(tokens)
            kept, length = self._longest(scope, tokens[:-1])
            # What is copied from must not be given up to make room for the copy.
            ended = kept is not None and self._ended.pop(id(kept), None) is not None
            slab = self._pool.take(virtual + len(tokens))
            if kept is not None:
                slab.copy_from(kept.slab, virtual + length)
                self.found += length
                if ended:
                    self._ended[id(kept)] = kept
                    self._reclaim(self._pool.used - self._pool.budget)
            return slab, length

    def _longest(self, scope: Scope, tokens: Sequence[int]) -> tuple[Kept | None, int]:
        best: tuple[Kept | None, int] = None, 0
        for key in _keys(scope, tokens):
            at = self._index.get(key)
            if at is None:
                break
            best = at
        return best

    def lend(self, scope: Scope, tokens: Sequence[int], slab: Slab) -> Kept:
        """A row that goes on has computed these tokens. It says when its slab changes (`kept.slab = …`), and `keep` or `drop` in
        the end."""
        kept = Kept(scope, slab)
        with self._lock:
            self._point(kept, tokens)
        return kept

    def keep(self, kept: Kept, tokens: Sequence[int]) -> None:
        """Its row has ended, with these tokens computed; the slab is the cache's now."""
        with self._lock:
            self._point(kept, tokens)
            if kept.keys:
                self._ended[id(kept)] = kept
            else:
                self._pool.give(kept.slab)

    def drop(self, kept: Kept) -> None:
        """Its row gives its slab back."""
        with self._lock:
            for key in kept.keys:
                del self._index[key]
            kept.keys.clear()

    def forget(self, digest: str) -> None:
        """A version that is not served here any more."""
        with self._lock:
            for kept in [k for k in self._ended.values() if k.scope[0] == digest]:
                self._let_go(kept)

    @property
    def nbytes(self) -> int:
        """Of slabs that only the cache has."""
        return sum(kept.slab.nbytes for kept in list(self._ended.values()))

    def _point(self, kept: Kept, tokens: Sequence[int]) -> None:
        """Its blocks lead to it from now on; what they led to before goes when nothing else leads there."""
        for i, key in enumerate(_keys(kept.scope, tokens), 1):
            before = self._index.get(key)
            if before is not None and before[0] is not kept:
                before[0].keys.discard(key)
                if not before[0].keys and id(before[0]) in self._ended:
                    self._let_go(before[0])
            self._index[key] = kept, i * BLOCK
            kept.keys.add(key)

    def _reclaim(self, nbytes: int) -> bool:
        some = nbytes > 0 and bool(self._ended)
        while nbytes > 0 and self._ended:
            kept = next(iter(self._ended.values()))
            nbytes -= kept.slab.nbytes
            self._let_go(kept)
        return some

    def _let_go(self, kept: Kept) -> None:
        self.drop(kept)
        del self._ended[id(kept)]
        self._pool.give(kept.slab)


def _keys(scope: Scope, tokens: Sequence[int]) -> Iterator[_Key]:
    """One a whole block: it stands for all tokens up to its end."""
    running = hashlib.blake2b(digest_size=16)
    data = np.asarray(tokens, dtype=np.int64)
    for start in range(0, len(data) - BLOCK + 1, BLOCK):
        running.update(data[start : start + BLOCK].tobytes())
        yield scope, running.digest()
