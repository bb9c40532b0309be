"""Whatever the order of jobs, changes of versions and removals: the budget holds, what runs stays, every load ends."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.residency.fakes import residents

VERSIONS, VFMS = [f"v{i}" for i in range(5)], ["a", "b", "c"]
steps = st.one_of(
    st.tuples(st.just("job"), st.sampled_from(VERSIONS), st.sampled_from(VFMS)),
    st.tuples(st.just("job"), st.sampled_from(VERSIONS), st.sampled_from(VFMS)),
    st.tuples(st.just("end"), st.integers(0, 9), st.none()),
    st.tuples(st.just("give up"), st.integers(0, 9), st.none()),
    st.tuples(st.just("serves"), st.sampled_from(VERSIONS), st.sampled_from(VFMS)),
    st.tuples(st.just("forget"), st.none(), st.sampled_from(VFMS)),
    st.tuples(st.just("let pass"), st.integers(1, 20), st.none()),
)


class Story:
    """Jobs that load their version, run a while and let go."""

    def __init__(self, room: float) -> None:
        self.residents, self.engine, _ = residents(room)
        self.engine.on_unload = self.never_while_it_runs
        self.waiting: list[tuple[asyncio.Task[Any], str]] = []
        self.running: list[str] = []

    def never_while_it_runs(self, version: str) -> None:
        assert version not in self.running
        assert not any(t.done() and not t.cancelled() and v == version for t, v in self.waiting)

    def look(self) -> None:
        for task, version in [w for w in self.waiting if w[0].done()]:
            self.waiting.remove((task, version))
            if not task.cancelled():
                task.result()
                self.running.append(version)
        assert set(self.running) <= set(self.engine.loaded)
        stats = self.residents.snapshot()
        assert stats.versions <= len(self.engine.loaded)  # one may just be coming
        assert stats.device_bytes <= stats.budget_bytes

    def end(self, nth: int) -> None:
        if self.running:
            version = self.running.pop(nth % len(self.running))
            self.residents.unpin(version)

    async def step(self, what: str, how: Any, vfm: str | None) -> None:
        match what:
            case "job":
                self.waiting.append((asyncio.create_task(self.residents.load(how, str(vfm))), how))
            case "end":
                self.end(how)
            case "give up" if self.waiting:
                self.waiting[how % len(self.waiting)][0].cancel()
            case "serves":
                self.residents.serves(str(vfm), how)
            case "forget":
                self.residents.forget(str(vfm))
            case "let pass":
                for _ in range(how):
                    await asyncio.sleep(0)
        self.look()

    async def finish(self) -> None:
        """Jobs end as they do: then every load does."""
        turns = 0
        while self.waiting or self.running or self.residents._loads:
            self.end(0)
            await asyncio.sleep(0.0002)
            self.look()
            turns += 1
            assert turns < 20_000, f"waits for ever: {self.waiting}"


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=40), st.sampled_from([1.8, 2, 3]))
def test_any_order(story: list[tuple[str, Any, str | None]], room: float) -> None:
    async def tell() -> None:
        s = Story(room)
        for step in story:
            await s.step(*step)
        await s.finish()
        assert set(s.residents.known()) <= set(VFMS)
        await s.residents.close()
        assert s.residents.snapshot().versions == len(s.engine.loaded)

    asyncio.run(tell())
