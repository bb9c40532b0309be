"""Slabs and the prompts kept in them: bytes stay within bounds, and what is found is what was computed."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fmplex_broker.errors import InvalidInput
from fmplex_worker.kvcache.arena import Arena
from fmplex_worker.kvcache.pool import KvPool, KvShape, Slab, capacity_for
from fmplex_worker.kvcache.prefix_cache import BLOCK, CachedPrefix, PrefixCache

SHAPE = KvShape(layers=1, heads=1, size=1, dtype=torch.float32)
BUDGET = 2000 * SHAPE.token_bytes


@given(tokens=st.integers(1, 100_000))
def test_a_slab_holds_what_was_asked_for_and_not_much_more(tokens: int) -> None:
    assert tokens <= capacity_for(tokens) <= max(32, 1.5 * tokens)


@given(tokens=st.integers(33, 100_000))
def test_sizes_grow_by_a_third_or_a_half(tokens: int) -> None:
    capacity = capacity_for(tokens)
    assert 4 / 3 <= capacity_for(capacity + 1) / capacity <= 3 / 2


def _text(kind: int, length: int) -> list[int]:
    """Texts of one kind begin alike."""
    return [kind] * min(length, 2 * BLOCK) + [100 + kind + i % 7 for i in range(length - 2 * BLOCK)]


class Memory(RuleBasedStateMachine):
    """Rows that come, compute, end, are evicted and forgotten, in any order. A slab's content is the tokens themselves, so that a
    prefix that is found can be compared with what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = KvPool(SHAPE, torch.device("cpu"), BUDGET)
        self.cache = PrefixCache(self.pool)
        self.rows: list[tuple[str, list[int], Slab, CachedPrefix | None]] = []

    @precondition(lambda self: self.pool.used - self.cache.nbytes < BUDGET // 2)
    @rule(digest=st.sampled_from("ab"), kind=st.integers(0, 2), length=st.integers(1, 200))
    def come(self, digest: str, kind: int, length: int) -> None:
        tokens = _text(kind, length)
        slab, n = self.cache.allocate((digest, "v"), tokens)
        assert 0 <= n < length
        assert n % BLOCK == 0
        assert slab.data[0, 0, 0, :n, 0].tolist() == tokens[:n]
        slab.data[0, :, 0, :length, 0] = torch.tensor(tokens, dtype=torch.float32)
        kept = self.cache.publish((digest, "v"), tokens, slab) if length % 2 else None
        self.rows.append((digest, tokens, slab, kept))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), more=st.integers(0, 60))
    def end(self, data: Any, more: int) -> None:
        digest, tokens, slab, kept = self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))
        longer = tokens + [7] * more
        slab = self.pool.grow(slab, len(longer), len(tokens))
        slab.data[0, :, 0, : len(longer), 0] = torch.tensor(longer, dtype=torch.float32)
        if kept is None:
            kept = CachedPrefix((digest, "v"), slab)
        kept.slab = slab
        self.cache.store(kept, longer)

    @rule(digest=st.sampled_from("ab"))
    def forget(self, digest: str) -> None:
        self.cache.forget(digest)

    @invariant()
    def bytes_are_bounded(self) -> None:
        rows = sum(slab.nbytes for _, _, slab, _ in self.rows)
        assert self.pool.used == rows + self.cache.nbytes
        assert self.pool.used <= BUDGET

    @invariant()
    def what_rows_have_computed_is_still_there(self) -> None:
        for _, tokens, slab, _ in self.rows:
            assert slab.data[0, 0, 0, : len(tokens), 0].tolist() == tokens

    @invariant()
    def whatever_leads_somewhere_leads_to_tokens(self) -> None:
        ended = set(self.cache._ended)
        rows = {id(kept) for _, _, _, kept in self.rows if kept is not None}
        for key, (kept, length) in self.cache._index.items():
            assert key in kept.keys
            assert key[0] == kept.scope
            assert id(kept) in ended | rows
            assert length <= kept.slab.capacity

    def teardown(self) -> None:
        for digest, tokens, slab, kept in self.rows:
            self.cache.store(kept or CachedPrefix((digest, "v"), slab), tokens)
        for digest in "ab":
            self.cache.forget(digest)
        assert self.pool.used == 0
        with self.pool.lock:
            assert self.pool._arena.allocate(BUDGET) is not None, "all of it is one hole again"
        assert not self.cache._index


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 40)), max_size=60))
def test_pieces_of_an_arena_never_overlap_and_come_back_whole(does: list[tuple[bool, int, int]]) -> None:
    """What is given is written to, and none of it is ever found changed."""
    arena = Arena(100, torch.device("cpu"), threading.RLock())
    pieces: list[tuple[int, torch.Tensor, int]] = []
    for number, (takes, which, size) in enumerate(does):
        if takes:
            found = arena.allocate(size)
            free = 100 - sum(len(data) for _, data, _ in pieces)
            assert found is not None or free < size or pieces, "one stretch is not cut up"
            if found is not None:
                pieces.append((*found, number))
                found[1].fill_(number)
        elif pieces:
            start, data, _ = pieces.pop(which % len(pieces))
            arena.free(start, len(data))
        assert all(bool((data == n).all()) for _, data, n in pieces)
    for start, data, _ in pieces:
        arena.free(start, len(data))
    assert arena.allocate(100) is not None


def test_memory_that_is_touched_keeps_what_is_in_it() -> None:
    lock = threading.RLock()
    arena = Arena(64 << 20, torch.device("cpu"), lock)
    pieces = []
    arena.touch_all()
    for number in range(40):
        with lock:
            found = arena.allocate(1 << 20)
        assert found is not None
        found[1].fill_(1 + number)
        pieces.append(found[1])
    assert arena._toucher is not None
    arena._toucher.join(60)
    assert all(bool((piece == 1 + number).all()) for number, piece in enumerate(pieces))


def test_a_process_that_ends_does_not_wait_until_all_is_touched() -> None:
    code = (
        "import threading, torch\n"
        "from fmplex_worker.kvcache.arena import Arena\n"
        "arena = Arena(1 << 34, torch.device('cpu'), threading.RLock())\n"
        "arena.touch_all()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_more_memory_than_there_is_is_refused() -> None:
    with pytest.raises(InvalidInput, match="kv_bytes"):
        KvPool(SHAPE, torch.device("cpu"), 1 << 60)


Memory.TestCase.settings = settings(deadline=None, max_examples=50, stateful_step_count=30)
TestMemory = Memory.TestCase
