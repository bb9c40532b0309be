"""Versions on the device: loaded on demand, evicted least recently used, pinned while in use; everybody who waits is served."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fmplex_broker.errors import JobFailed, PackageRejected, Unavailable
from fmplex_worker.residency import residents as residents_module
from fmplex_worker.residency.residents import Residents
from tests.support.waiting import until_soon
from tests.unit.residency.fakes import MB, residents


async def use(r: Residents, *versions: str) -> None:
    """A job of each, one after the other."""
    for version in versions:
        await r.load(version, f"vfm of {version}")
        r.unpin(version)


def here(r: Residents, *versions: str) -> list[str]:
    return [v for v in versions if r.has(v)]


# --- loading ----------------------------------------------------------------------------------------------------------


async def test_a_version_is_loaded_when_it_is_first_wanted_and_then_stays() -> None:
    r, engine, _ = residents()
    assert not r.has("v1")
    await use(r, "v1", "v1")
    assert r.has("v1")
    assert engine.loads == {"v1": 1}
    assert r.here() == {"vfm of v1"}
    assert (r.snapshot().versions, r.snapshot().loads, r.snapshot().device_bytes >= MB) == (1, {"store": 1}, True)


async def test_it_is_fetched_and_loaded_once_however_many_wait() -> None:
    r, engine, fetcher = residents()
    fetcher.gate.clear()
    waiting = [asyncio.create_task(r.load("v1", "a")) for _ in range(50)]
    await until_soon(lambda: fetcher.asked["v1"])
    fetcher.gate.set()
    await asyncio.gather(*waiting)
    assert (fetcher.asked, engine.loads) == ({"v1": 1}, {"v1": 1})
    for _ in range(49):
        r.unpin("v1")
    assert r._lru.pinned("v1")  # one pin each
    r.unpin("v1")
    assert not r._lru.pinned("v1")


async def test_a_waiter_that_gives_up_leaves_no_pin_and_the_others_alone() -> None:
    r, engine, fetcher = residents(1)
    fetcher.gate.clear()
    waiting = [asyncio.create_task(r.load("v1", "a")) for _ in range(3)]
    await until_soon(lambda: fetcher.asked["v1"])
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    fetcher.gate.set()
    await asyncio.gather(*waiting[1:])
    r.unpin("v1")
    r.unpin("v1")
    assert not r._lru.pinned("v1")
    await use(r, "v2")  # so there is room
    assert engine.unloads == ["v1"]


async def test_the_least_recently_used_goes_first() -> None:
    r, engine, _ = residents(3)
    await use(r, "v1", "v2", "v3", "v1", "v4", "v5")
    assert engine.unloads == ["v2", "v3"]
    assert here(r, "v1", "v2", "v3", "v4", "v5") == ["v1", "v4", "v5"]


async def test_what_is_pinned_stays_though_it_was_used_longest_ago() -> None:
    r, engine, _ = residents(2)
    await r.load("old", "a")
    await use(r, "v2", "v3")
    assert (engine.unloads, r.has("old")) == (["v2"], True)


async def test_two_versions_that_want_the_only_place_are_both_served() -> None:
    """Neither may push the other out before it was used, over and over again."""
    r, engine, _ = residents(1)

    async def jobs(version: str) -> None:
        for _ in range(5):
            await r.load(version, version)
            assert version in engine.loaded
            await asyncio.sleep(0)
            r.unpin(version)

    await asyncio.wait_for(asyncio.gather(*(jobs(v) for v in ("v1", "v2", "v3"))), 5)
    assert sum(engine.loads.values()) <= 15


async def test_a_hot_version_makes_room_for_one_that_waits_and_everybody_is_served() -> None:
    r, engine, _ = residents(1)
    await r.load("hot", "hot")
    cold = asyncio.create_task(r.load("cold", "cold"))
    await until_soon(lambda: not r.has("hot"))  # leaving: its new jobs wait
    more = asyncio.create_task(r.load("hot", "hot"))
    await asyncio.sleep(0)
    assert "hot" in engine.loaded  # it still runs
    assert not cold.done()
    r.unpin("hot")
    await asyncio.wait_for(cold, 5)
    assert list(engine.loaded) == ["cold"]
    assert not more.done()
    r.unpin("cold")
    await asyncio.wait_for(more, 5)
    assert list(engine.loaded) == ["hot"]


async def test_what_did_not_have_to_leave_is_there_again() -> None:
    """Somebody else made room: its next jobs need no store."""
    r, _, fetcher = residents(2)
    await r.load("v1", "a")
    await r.load("v2", "b")
    third = asyncio.create_task(r.load("v3", "c"))
    await until_soon(lambda: not r.has("v1"))
    r.unpin("v2")
    await asyncio.wait_for(third, 5)
    assert r.has("v1")
    fetcher.failing["v1"] = Unavailable("the store is away")
    await asyncio.wait_for(r.load("v1", "a"), 5)


# --- failing ----------------------------------------------------------------------------------------------------------


async def test_too_large_for_the_whole_budget_is_refused_and_pushes_nothing_out() -> None:
    r, engine, _ = residents(2, sizes={"huge": 3 * MB})
    await use(r, "v1")
    with pytest.raises(PackageRejected, match="device_bytes"):
        await r.load("huge", "a")
    assert (engine.unloads, r.has("v1")) == ([], True)


async def test_a_store_that_does_not_answer_is_not_asked_for_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(residents_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    r, _, fetcher = residents()
    fetcher.failing["v1"] = Unavailable("the store is away")
    for _ in range(5):
        with pytest.raises(Unavailable, match="away"):
            await r.load("v1", "a")
    assert fetcher.asked["v1"] == 1
    del fetcher.failing["v1"]
    clock.now += residents_module._BLAME_S
    await r.load("v1", "a")
    assert (fetcher.asked["v1"], r.has("v1")) == (2, True)


async def test_a_crash_of_the_engine_fails_the_jobs_of_that_version_only() -> None:
    r, engine, _ = residents()
    engine.broken["v1"] = RuntimeError("CUDA says no")
    with pytest.raises(JobFailed, match="CUDA says no"):
        await r.load("v1", "a")
    await use(r, "v2")
    assert here(r, "v1", "v2") == ["v2"]


async def test_all_who_wait_hear_of_a_failure() -> None:
    r, _, fetcher = residents()
    fetcher.gate.clear()
    fetcher.failing["v1"] = PackageRejected("torn")
    waiting = [asyncio.create_task(r.load("v1", "a")) for _ in range(5)]
    await until_soon(lambda: fetcher.asked["v1"])
    fetcher.gate.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert {str(e) for e in errors} == {"torn"}


# --- following the fleet ----------------------------------------------------------------------------------------------


async def test_a_replaced_version_is_freed_with_its_last_job() -> None:
    r, engine, _ = residents(3)
    await r.load("v1", "a")
    await use(r, "v2")
    r.serves("a", "v2")
    assert "v1" in engine.loaded
    r.unpin("v1")
    assert list(engine.loaded) == ["v2"]
    assert r.here() == {"a", "vfm of v2"}


async def test_a_replaced_version_that_nobody_uses_is_freed_at_once() -> None:
    r, engine, _ = residents(3)
    await r.load("v1", "a")
    r.unpin("v1")
    r.serves("a", "v2")
    assert engine.loaded == {}


async def test_the_hint_follows_what_serves_though_a_late_job_brings_the_old_version_back() -> None:
    r, _, _ = residents(3)
    await r.load("v1", "a")
    r.unpin("v1")
    r.serves("a", "v2")  # not here yet
    assert r.here() == set()
    await r.load("v1", "a")
    assert r.here() == set()  # jobs that come now are of v2
    await r.load("v2", "a")
    assert r.known() == {"a": "v2"}
    assert r.here() == {"a"}


async def test_a_version_that_two_vfms_share_goes_with_the_second() -> None:
    r, engine, _ = residents()
    await r.load("v1", "a")
    await r.load("v1", "b")
    r.unpin("v1")
    r.unpin("v1")
    assert engine.loads["v1"] == 1
    r.forget("a")
    assert (r.has("v1"), r.here()) == (True, {"b"})
    r.forget("b")
    assert engine.loaded == {}


async def test_a_version_is_rolled_back_to_while_its_jobs_still_run() -> None:
    r, engine, _ = residents()
    await r.load("v1", "a")
    r.serves("a", "v2")
    r.serves("a", "v1")
    r.unpin("v1")
    assert (list(engine.loaded), r.here()) == (["v1"], {"a"})


async def test_a_vfm_that_is_removed_while_its_version_loads() -> None:
    r, engine, fetcher = residents(1)
    fetcher.gate.clear()
    loading = asyncio.create_task(r.load("v1", "a"))
    await until_soon(lambda: fetcher.asked["v1"])
    r.forget("a")
    fetcher.gate.set()
    await asyncio.wait_for(loading, 5)  # its last jobs are answered in order
    r.unpin("v1")
    await use(r, "v2")  # and it does not stay in the way
    assert list(engine.loaded) == ["v2"]


async def test_a_new_life_holds_nothing() -> None:
    r, engine, _ = residents(3)
    await r.load("v1", "a")
    await r.load("v2", "b")
    r.forget("a")
    r.unpin_all()
    assert list(engine.loaded) == ["v2"]  # v1 was only waiting for its last job
    r.unpin("v2")  # a late word of the old life
    await r.load("v2", "b")
    r.unpin("v2")


async def test_close_ends_what_is_being_loaded() -> None:
    r, engine, fetcher = residents(1)
    await r.load("v1", "a")
    waiting = [asyncio.create_task(r.load(v, v)) for v in ("v2", "v3")]
    await until_soon(lambda: fetcher.asked["v2"] and fetcher.asked["v3"])
    await asyncio.wait_for(r.close(), 5)
    await asyncio.wait(waiting)
    assert all(w.cancelled() for w in waiting)
    assert list(engine.loaded) == ["v1"]
