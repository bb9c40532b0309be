"""A budget of bytes: the least recently used goes first, what is pinned stays, the sum is always right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fmplex_worker.residency.lru import LruBytes

BUDGET = 100
keys = st.sampled_from("abcdef")
sizes = st.integers(0, 130)


class LruAgainstAModel(RuleBasedStateMachine):
    """As its owners use it: make room, then put. The model is a list in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.lru = LruBytes(BUDGET)
        self.order: list[str] = []
        self.sizes: dict[str, int] = {}
        self.pins: dict[str, int] = {}

    def used(self, key: str) -> None:
        if key in self.order:
            self.order.remove(key)
        self.order.append(key)

    @rule(key=keys, size=sizes)
    def put(self, key: str, size: int) -> None:
        """A new one, or a size corrected."""
        more = size - self.sizes.get(key, 0)
        victims = self.lru.victims(more)
        over, expected = sum(self.sizes.values()) + more - BUDGET, []
        for candidate in self.order:
            if over > 0 and not self.pins[candidate]:
                expected.append(candidate)
                over -= self.sizes[candidate]
        assert victims == expected
        for victim in victims:
            self.lru.remove(victim)
            self.order.remove(victim)
            del self.sizes[victim], self.pins[victim]
        self.lru.put(key, size)
        self.used(key)
        self.sizes[key] = size
        self.pins.setdefault(key, 0)

    @rule(key=keys, times=st.integers(0, 3))
    def pin(self, key: str, times: int) -> None:
        if key in self.lru:
            self.lru.pin(key, times)
            self.pins[key] += times
            self.used(key)

    @rule(key=keys)
    def unpin(self, key: str) -> None:
        if key in self.lru:
            self.pins[key] = max(0, self.pins[key] - 1)
            assert self.lru.unpin(key) == (self.pins[key] == 0)

    @rule(key=keys)
    def touch(self, key: str) -> None:
        if key in self.lru:
            self.lru.touch(key)
            self.used(key)

    @rule(key=keys)
    def remove(self, key: str) -> None:
        self.lru.remove(key)  # unknown: no-op
        if key in self.order:
            self.order.remove(key)
            del self.sizes[key], self.pins[key]

    @rule()
    def unpin_all(self) -> None:
        self.lru.unpin_all()
        self.pins = dict.fromkeys(self.pins, 0)

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        assert list(self.lru) == self.order
        assert len(self.lru) == len(self.order)
        assert self.lru.nbytes == sum(self.sizes.values())
        assert all(self.lru.pinned(key) == (pins > 0) for key, pins in self.pins.items())
        assert self.lru.pinned_bytes == sum(self.sizes[key] for key, pins in self.pins.items() if pins)

    @invariant()
    def what_is_to_go_brings_it_within_the_budget_unless_pins_forbid(self) -> None:
        victims = self.lru.victims(0)
        assert not any(self.pins[v] for v in victims)
        left = self.lru.nbytes - sum(self.sizes[v] for v in victims)
        assert left <= BUDGET or all(self.pins[k] for k in self.order if k not in victims)


TestLru = LruAgainstAModel.TestCase


@given(st.lists(st.tuples(keys, st.integers(0, BUDGET)), max_size=60))
def test_without_pins_it_is_never_over_budget(puts: list[tuple[str, int]]) -> None:
    lru = LruBytes(BUDGET)
    for key, size in puts:
        lru.remove(key)
        for victim in lru.victims(size):
            lru.remove(victim)
        lru.put(key, size)
        assert lru.nbytes <= BUDGET
        assert key in lru
