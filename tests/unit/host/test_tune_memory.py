"""Memory of tuning jobs: shared evenly, given back, and never more than there is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import virtual_time
from fmplex_broker.wire.stats import TrainingStats
from fmplex_worker.host.tune_memory import TuneMemory
from fmplex_worker.training import MemoryNeed

BUDGET = 1000


class FakeTraining:
    """What it is limited to it holds once its micro-batch has `ended`."""

    def __init__(self, least: int, most: int) -> None:
        self.needs = MemoryNeed(least, most)
        self._limit = self._running = 0

    def limit(self, nbytes: int) -> None:
        assert nbytes >= self.needs.least
        self._limit = min(nbytes, self.needs.most)

    def run(self) -> None:
        """A micro-batch runs."""
        self._running = self._limit

    @property
    def holds(self) -> int:
        return max(self._limit, self._running)


class Desk:
    def __init__(self) -> None:
        self.stats = TrainingStats()
        self.memory = TuneMemory(BUDGET, self.stats)
        self.said: list[str] = []

    def enter(self, key: str, training: FakeTraining) -> asyncio.Task[None]:
        made: Any = training
        return asyncio.create_task(self.memory.admit(key, made, self.said.append))


def test_who_is_alone_has_all_that_it_wants_and_gives_way_to_a_second() -> None:
    async def main(_: virtual_time.Clock) -> None:
        desk, first, second = Desk(), FakeTraining(100, 900), FakeTraining(100, 2000)
        await desk.enter("a", first)
        assert first.holds == desk.stats.bytes == 900
        first.run()
        entering = desk.enter("b", second)
        await asyncio.sleep(1)
        assert not entering.done(), "the other one's micro-batch is under way"
        first.run()
        await entering
        assert (first.holds, second.holds, desk.stats.bytes) == (500, 500, 1000)
        assert desk.said == []
        desk.memory.release("a")
        assert second.holds == desk.stats.bytes == BUDGET
        desk.memory.release("b")
        assert desk.stats.bytes == 0

    virtual_time.run(main)


def test_who_wants_little_leaves_the_rest() -> None:
    async def main(_: virtual_time.Clock) -> None:
        desk, small, large = Desk(), FakeTraining(100, 200), FakeTraining(300, 5000)
        await desk.enter("small", small)
        await desk.enter("large", large)
        assert (small.holds, large.holds) == (200, 800)

    virtual_time.run(main)


def test_who_needs_more_than_is_free_waits_and_says_so_once() -> None:
    async def main(_: virtual_time.Clock) -> None:
        desk, first, second = Desk(), FakeTraining(600, 900), FakeTraining(500, 900)
        await desk.enter("a", first)
        first.run()
        entering = desk.enter("b", second)
        await asyncio.sleep(5)
        assert not entering.done()
        assert first.holds == 900, "it need not give way to who cannot come in"
        assert desk.said == [
            "Waiting for memory: it takes 500 bytes at least, and of the 1,000 of worker.tuning.bytes 600 are needed by other "
            "tuning jobs until one of them has ended"
        ]
        desk.memory.release("a")
        await entering
        assert second.holds == 900

    virtual_time.run(main)


def test_who_gives_up_waiting_leaves_the_others_what_they_had() -> None:
    async def main(_: virtual_time.Clock) -> None:
        desk, first = Desk(), FakeTraining(100, 900)
        await desk.enter("a", first)
        first.run()
        entering = desk.enter("b", FakeTraining(100, 2000))
        await asyncio.sleep(1)
        entering.cancel()
        await asyncio.wait({entering})
        first.run()
        assert first.holds == 900
        desk.memory.release("b")
        assert desk.stats.bytes == 900

    virtual_time.run(main)


needs = st.tuples(st.integers(0, BUDGET), st.integers(0, 2 * BUDGET)).map(lambda pair: (pair[0], sum(pair)))
steps = st.lists(st.tuples(st.sampled_from("aabbcr-"), needs), max_size=40)


@settings(deadline=None)
@given(steps)
def test_whoever_comes_and_goes_no_more_is_held_than_there_is(steps: list[tuple[str, tuple[int, int]]]) -> None:
    async def main(_: virtual_time.Clock) -> None:
        desk = Desk()
        here: dict[str, tuple[FakeTraining, asyncio.Task[None]]] = {}
        for what, (least, most) in steps:
            if what in "ab" and what not in here:
                training = FakeTraining(least, most)
                here[what] = training, desk.enter(what, training)
            elif what == "r":
                for training, entering in here.values():
                    if entering.done():
                        training.run()
            elif what in "abc" and here:
                key, (_, entering) = here.popitem()
                entering.cancel()
                await asyncio.wait({entering})
                desk.memory.release(key)
            await asyncio.sleep(0.3)
            inside = [training for training, entering in here.values() if entering.done()]
            assert sum(training.holds for training in inside) <= BUDGET
            assert all(training.holds >= training.needs.least for training in inside)

    virtual_time.run(main)


@pytest.mark.parametrize("least", [0, BUDGET])
def test_what_just_fits_comes_in(least: int) -> None:
    async def main(_: virtual_time.Clock) -> None:
        desk = Desk()
        await asyncio.wait_for(desk.enter("a", FakeTraining(least, BUDGET)), 1)
        assert desk.stats.bytes == BUDGET

    virtual_time.run(main)
