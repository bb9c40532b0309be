"""The arena and the pool by themselves: which hole is taken, how large slabs are, where one comes from when no hole fits."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmplex_worker.kvcache.arena import Arena
from fmplex_worker.kvcache.pool import KvBudget, KvPool, KvShape, Slab, capacity_for

CPU = torch.device("cpu")
SIZE = 64
SHAPE = KvShape(layers=2, heads=1, size=1, dtype=torch.float32)
TOKEN = SHAPE.token_bytes


def holes(pieces: dict[int, int], size: int = SIZE) -> list[tuple[int, int]]:
    """Length and start of all that lies between the pieces."""
    found, at = [], 0
    for start in [*sorted(pieces), size]:
        if start > at:
            found.append((start - at, at))
        at = start + pieces.get(start, 0)
    return found


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 24)), max_size=80))
def test_pieces_come_from_the_smallest_hole_and_of_equal_ones_from_the_first(does: list[tuple[bool, int, int]]) -> None:
    """Holes are what lies between the pieces: neighbours that were given back are one."""
    arena = Arena(SIZE, CPU, threading.RLock())
    pieces: dict[int, int] = {}
    for takes, which, nbytes in does:
        if takes:
            fitting = [hole for hole in holes(pieces) if hole[0] >= nbytes]
            found = arena.allocate(nbytes)
            if found is None:
                assert fitting == []
                continue
            start, data = found
            assert start == min(fitting)[1]
            assert (data.dtype, len(data)) == (torch.uint8, nbytes)
            pieces[start] = nbytes
        elif pieces:
            start = sorted(pieces)[which % len(pieces)]
            arena.free(start, pieces.pop(start))
    for start, nbytes in pieces.items():
        arena.free(start, nbytes)
    whole = arena.allocate(SIZE)
    assert whole is not None
    assert whole[0] == 0
    assert arena.allocate(1) is None


def test_a_piece_is_the_memory_at_its_start() -> None:
    arena = Arena(SIZE, CPU, threading.RLock())
    whole = arena.allocate(SIZE)
    assert whole is not None
    arena.free(0, SIZE)
    for number in range(4):
        found = arena.allocate(10)
        assert found is not None
        found[1].fill_(number)
        assert found[0] == 10 * number
    assert whole[1][:40].tolist() == [n for n in range(4) for _ in range(10)]


@given(tokens=st.integers(1, 5000), held=st.integers(1, 5000))
def test_a_slab_is_of_a_common_size_but_never_larger_than_all_there_is(tokens: int, held: int) -> None:
    budget = KvBudget(SHAPE, held * TOKEN + 3)
    assert budget.tokens == held
    assert budget.capacity(tokens) >= tokens
    assert budget.capacity(tokens) == (capacity_for(tokens) if capacity_for(tokens) <= held else max(tokens, held))
    assert budget.slab_bytes(tokens) == budget.capacity(tokens) * TOKEN


def test_sizes_are_few() -> None:
    assert sorted({capacity_for(n) for n in range(1, 1025)}) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
    assert [capacity_for(n) for n in (0, 1, 32, 33, 48, 49, 64, 65)] == [32, 32, 32, 48, 48, 64, 64, 96]


def pool(tokens: int) -> KvPool:
    """Room for so many tokens."""
    return KvPool(SHAPE, CPU, tokens * TOKEN)


def test_a_slab_has_keys_and_values_of_every_layer_and_its_bytes_are_counted() -> None:
    p = pool(100)
    slab = p.allocate(40)
    assert slab.data.shape == (2, 2, 1, 48, 1)
    assert (slab.data.dtype, slab.capacity, slab.nbytes) == (torch.float32, 48, 48 * TOKEN)
    assert p.used == 48 * TOKEN
    other = p.allocate(1)
    assert p.used == 80 * TOKEN
    p.free(slab)
    assert p.used == 32 * TOKEN
    p.free(other)
    assert p.used == 0
    assert p.allocate(100).start == 0, "all of it is one hole again"


def test_slabs_do_not_share_memory() -> None:
    p = pool(200)
    slabs = [p.allocate(32) for _ in range(5)]
    for number, slab in enumerate(slabs):
        slab.data.fill_(number)
    assert all(bool((slab.data == number).all()) for number, slab in enumerate(slabs))


def test_a_slab_that_is_large_enough_stays_and_another_moves_with_what_was_used() -> None:
    p = pool(200)
    slab = p.allocate(32)
    assert p.grow(slab, 32, 5) is slab
    slab.data.copy_(torch.arange(slab.data.numel()).view_as(slab.data))
    before = slab.data[:, :, :, :20].clone()
    larger = p.grow(slab, 33, 20)
    assert larger.capacity == 48
    assert torch.equal(larger.data[:, :, :, :20], before)
    assert p.used == larger.nbytes, "the smaller one was given back"
    assert p.allocate(32).start == slab.start


def test_whoever_keeps_slabs_that_nobody_needs_is_asked_for_what_is_missing() -> None:
    p = pool(96)
    kept = [p.allocate(32) for _ in range(3)]
    asked: list[int] = []

    def reclaim(nbytes: int) -> bool:
        asked.append(nbytes)
        if not kept:
            return False
        p.free(kept.pop())
        return True

    p.reclaim = reclaim
    slab = p.allocate(32)
    assert asked == [32 * TOKEN]
    assert (p.used, slab.start) == (96 * TOKEN, 64 * TOKEN)
    p.allocate(48)
    assert asked[1] == 48 * TOKEN, "96 are held, and 48 more are wanted"
    assert kept == []


def test_no_more_is_asked_back_than_is_missing() -> None:
    p = pool(128)
    kept = [p.allocate(32) for _ in range(3)]
    asked: list[int] = []

    def reclaim(nbytes: int) -> bool:
        asked.append(nbytes)
        p.free(kept.pop())
        return True

    p.reclaim = reclaim
    p.allocate(48)
    assert asked == [16 * TOKEN], "32 are free, and 48 are wanted"
    assert p.used == (32 + 32 + 48) * TOKEN


def test_within_the_budget_nobody_is_asked() -> None:
    p = pool(96)
    p.reclaim = lambda nbytes: pytest.fail("there is room")
    for _ in range(3):
        p.allocate(32)


def test_where_holes_are_too_small_a_slab_comes_from_elsewhere_and_counts_all_the_same() -> None:
    p = pool(128)
    first, _, third = slabs = [p.allocate(32) for _ in range(3)]
    p.free(first)
    p.free(third)
    middle = slabs[1]
    fitting = p.allocate(64)  # behind the middle one
    assert fitting.start == 64 * TOKEN
    p.free(fitting)
    left: list[Slab] = [p.allocate(32) for _ in range(3)]
    p.free(left[0])
    p.free(left[1])
    # 32 free before the middle one and 32 behind it: 64 in all, but nowhere together.
    stranger = p.allocate(48)
    assert stranger.start is None
    assert stranger.data.shape == (2, 2, 1, 48, 1)
    assert p.used == (32 + 32 + 48) * TOKEN
    p.free(stranger)
    p.free(middle)
    p.free(left[2])
    assert p.used == 0
    assert p.allocate(128).start == 0, "what came from elsewhere does not go into the arena"
