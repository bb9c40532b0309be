"""The prefix cache: prompts whose keys and values are kept, so that the next prompt that begins alike skips that part.

By vFM and digest of its version: never across adapters or tenants. What is kept are the slabs of sequences, of those that still
run and of those that have ended; a hit copies what it can use, which costs about a hundredth of computing it. Ended ones go,
the least recently used first, as soon as a running sequence needs the bytes.
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
class CachedPrefix:
    """Tokens whose keys and values `slab` holds. `keys` are those of its blocks that lead to it."""

    scope: Scope
    slab: Slab
    keys: set[_Key] = field(default_factory=set)


class PrefixCache:
    """Finds slabs by what they begin with. Any thread; but only the device thread allocates slabs, and it is the one that reads
    what it finds."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._lock = pool.lock
        self._index: dict[_Key, tuple[CachedPrefix, int]] = {}  # -> tokens of the slab up to the end of that block
        self._ended: OrderedDict[int, CachedPrefix] = OrderedDict()  # by id; least recently used first
        pool.reclaim = self._reclaim

    def allocate(self, scope: Scope, tokens: Sequence[int], virtual: int = 0) -> tuple[Slab, int]:
        """Allocate a slab for a sequence of a soft prompt of `virtual` tokens and these; return it, and how many of these it has
        already, because others have computed the same prefix: at least one is left to compute."""
        with self._lock:
            prefix, length = self._longest(scope, tokens[:-1])
            # What is copied from must not be freed to make room for the copy.
            ended = prefix is not None and self._ended.pop(id(prefix), None) is not None
            slab = self._pool.allocate(virtual + len(tokens))
            if prefix is not None:
                slab.copy_from(prefix.slab, virtual + length)
                if ended:
                    self._ended[id(prefix)] = prefix
                    self._reclaim(self._pool.used - self._pool.budget)
            return slab, length

    def _longest(self, scope: Scope, tokens: Sequence[int]) -> tuple[CachedPrefix | None, int]:
        """Find the longest cached prefix of these tokens, and how many of them it holds."""
        best: tuple[CachedPrefix | None, int] = None, 0
        for key in _keys(scope, tokens):
            at = self._index.get(key)
            if at is None:
                break
            best = at
        return best

    def publish(self, scope: Scope, tokens: Sequence[int], slab: Slab) -> CachedPrefix:
        """Let others find these tokens, which a running sequence has computed. Whoever runs it says when its slab changes
        (`prefix.slab = …`), and calls `store` in the end."""
        prefix = CachedPrefix(scope, slab)
        with self._lock:
            self._index_blocks(prefix, tokens)
        return prefix

    def store(self, prefix: CachedPrefix, tokens: Sequence[int]) -> None:
        """Take over the slab of a sequence that has ended, with these tokens computed."""
        with self._lock:
            self._index_blocks(prefix, tokens)
            if prefix.keys:
                self._ended[id(prefix)] = prefix
            else:
                self._pool.free(prefix.slab)

    def forget(self, digest: str) -> None:
        """Free what is kept of a version that is not served here any more."""
        with self._lock:
            for prefix in [p for p in self._ended.values() if p.scope[0] == digest]:
                self._evict(prefix)

    @property
    def nbytes(self) -> int:
        """Bytes of slabs that only the cache has."""
        return sum(prefix.slab.nbytes for prefix in list(self._ended.values()))

    def _index_blocks(self, prefix: CachedPrefix, tokens: Sequence[int]) -> None:
        """Make the blocks of these tokens lead to a prefix; evict those that they led to before when nothing else leads there."""
        for i, key in enumerate(_keys(prefix.scope, tokens), 1):
            before = self._index.get(key)
            if before is not None and before[0] is not prefix:
                before[0].keys.discard(key)
                if not before[0].keys and id(before[0]) in self._ended:
                    self._evict(before[0])
            self._index[key] = prefix, i * BLOCK
            prefix.keys.add(key)

    def _reclaim(self, nbytes: int) -> bool:
        """Evict the least recently used until so many bytes are free; tell whether any were evicted."""
        some = nbytes > 0 and bool(self._ended)
        while nbytes > 0 and self._ended:
            prefix = next(iter(self._ended.values()))
            nbytes -= prefix.slab.nbytes
            self._evict(prefix)
        return some

    def _evict(self, prefix: CachedPrefix) -> None:
        """Free the slab of a sequence that has ended. The lock is held."""
        for key in prefix.keys:
            del self._index[key]
        prefix.keys.clear()
        del self._ended[id(prefix)]
        self._pool.free(prefix.slab)


def _keys(scope: Scope, tokens: Sequence[int]) -> Iterator[_Key]:
    """Yield a key for every whole block: it stands for all tokens up to its end."""
    running = hashlib.blake2b(digest_size=16)
    data = np.asarray(tokens, dtype=np.int64)
    for start in range(0, len(data) - BLOCK + 1, BLOCK):
        running.update(data[start : start + BLOCK].tobytes())
        yield scope, running.digest()
