"""A worker follows the fleet: it votes on what is offered, lets go of what is gone, and reads no more than it must."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from fmplex_broker.errors import BrokerUnavailable, FmplexError, PackageRejected, StaleVersion
from fmplex_broker.specs.deployments import DeployedVfm
from fmplex_broker.specs.versions import version_of
from fmplex_worker.host import deployments as library_module
from fmplex_worker.host.deployments import DeploymentFollower
from fmplex_worker.host.version_loads import VersionLoads
from tests.support.hosting import HOSTED, OTHER
from tests.support.waiting import until_soon
from tests.unit.residency.fakes import residents


class FakeRegistry:
    """The record of the fleet in a dict; counts what is asked."""

    def __init__(self) -> None:
        self.record: dict[str, DeployedVfm] = {}
        self.votes: list[tuple[str, str, FmplexError | None]] = []
        self.snapshots = 0
        self.asked: list[list[str]] = []
        self.away = 0  # calls that fail
        self.state = "serving"

    def _call(self) -> None:
        if self.away:
            self.away -= 1
            raise BrokerUnavailable("away")

    async def offers(self, backbone: str) -> list[str]:
        self._call()
        self.snapshots += 1
        return sorted(name for name, d in self.record.items() if d.offered)

    async def deployed(self, backbone: str, names: Sequence[str]) -> dict[str, DeployedVfm | None]:
        self._call()
        self.asked.append(list(names))
        return {name: self.record.get(name) for name in names}

    async def vote(self, backbone: str, vfm: str, version: str, worker: str, refusal: FmplexError | None = None) -> str:
        self._call()
        self.votes.append((vfm, version, refusal))
        return self.state


class FakeScheduler:
    def __init__(self) -> None:
        self.weights: dict[str, float] = {}
        self.waiting = 0

    def set_weight(self, vfm: str, weight: float) -> None:
        self.weights[vfm] = weight

    def pending(self, flow: Any) -> int:
        return self.waiting

    def forget(self, vfm: str) -> None:
        self.weights.pop(vfm, None)


class FakeConsumer:
    """Keeps what it is told of loads. `deaths`: how many workers have died of a version; `busy`: which worker is trying it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, list[tuple[str, str]]]] = []
        self.deaths: dict[str, int] = {}
        self.busy: dict[str, str] = {}

    async def loading(self, vfm: str, version: str, does: str, others: Iterable[tuple[str, str]]) -> tuple[int, str]:
        self.told.append((does, version, list(others)))
        return self.deaths.get(version, 0), self.busy.get(version, "") if does in ("begin", "try") else ""


class Fixture:
    def __init__(self) -> None:
        self.registry, self.scheduler, self.consumer = FakeRegistry(), FakeScheduler(), FakeConsumer()
        self.residents, self.engine, self.fetcher = residents(8)
        self.loads = VersionLoads(self.consumer, self.residents, 3, 60.0)  # type: ignore[arg-type]
        self.library = DeploymentFollower(self.registry, "b", self.scheduler, self.loads, HOSTED.digest)  # type: ignore[arg-type]

    def offer(self, vfm: str, version: str, serving: str = "") -> None:
        self.registry.record[vfm] = DeployedVfm(serving, 1.0, version)

    async def look(self) -> None:
        """What `follow` does at each word."""
        if self.library._rung.is_set():
            self.library._rung.clear()
            await self.library.catch_up("w1")

    async def caught_up(self, counter: int = 0) -> None:
        """A worker that has joined at this counter and heard all up to it."""
        self.library.count(counter)
        if counter:
            self.library.note([(counter, "somebody")])
        await self.look()
        self.registry.snapshots, self.registry.asked = 0, []


@pytest.fixture
def f() -> Fixture:
    return Fixture()


async def test_what_is_on_offer_is_voted_on_before_the_first_claim(f: Fixture) -> None:
    f.offer("a", "v1")
    f.registry.record["b"] = DeployedVfm("x", 1.0, "")
    f.library.count(7)
    await f.look()
    assert f.registry.votes == [("a", "v1", None)]
    assert f.registry.asked == [["a"]]  # what only serves is not even read


async def test_the_vote_comes_after_the_load(f: Fixture) -> None:
    await f.caught_up(1)
    f.fetcher.gate.clear()
    f.offer("a", "v2", serving="v1")
    f.library.note([(2, "a")])
    looking = asyncio.create_task(f.look())
    await until_soon(lambda: f.fetcher.asked["v2"])
    assert f.registry.votes == []
    f.fetcher.gate.set()
    await looking
    assert f.registry.votes == [("a", "v2", None)]
    assert (list(f.engine.loaded), f.residents.here()) == (["v2"], {"a"})
    assert not f.residents._lru.pinned("v2")


async def test_what_is_offered_for_other_weights_is_refused_unread(f: Fixture) -> None:
    f.registry.state = "rejected"
    await f.caught_up(1)
    f.offer("a", version_of("v1", OTHER.digest))
    f.library.note([(2, "a")])
    await f.look()
    ((_, version, refusal),) = f.registry.votes
    assert version == version_of("v1", OTHER.digest)
    assert isinstance(refusal, StaleVersion)
    assert f.fetcher.asked == {}


async def test_a_refusal_is_voted_with_its_words_and_holds_nothing(f: Fixture) -> None:
    refusal = PackageRejected("3 rows for 2 labels", field="head")
    f.fetcher.failing["v1"] = refusal
    f.registry.state = "rejected"
    await f.caught_up(1)
    f.offer("a", "v1")
    f.library.note([(2, "a")])
    await f.look()
    assert f.registry.votes == [("a", "v1", refusal)]
    assert f.engine.loaded == {}


async def test_words_in_order_need_no_snapshot(f: Fixture) -> None:
    await f.caught_up(5)
    for counter in range(6, 20):
        f.registry.record["a"] = DeployedVfm("v1", counter, "")
        f.library.note([(counter, "a")])
        f.library.count(counter)
        await f.look()
        assert f.scheduler.weights["a"] == counter
    assert f.registry.snapshots == 0
    assert f.registry.asked == [["a"]] * 14


async def test_a_word_that_is_missing_brings_a_snapshot(f: Fixture) -> None:
    await f.caught_up(5)
    f.offer("lost", "v1")
    f.library.note([(7, "a")])  # 6 was of `lost`
    await f.look()
    assert f.registry.snapshots == 1
    assert f.registry.votes == [("lost", "v1", None)]


async def test_words_that_are_all_lost_are_noticed_by_the_beats(f: Fixture) -> None:
    await f.caught_up(5)
    f.offer("lost", "v1")
    f.library.count(6)  # the word may still be on its way
    await f.look()
    assert f.registry.votes == []
    f.library.count(6)
    await f.look()
    assert f.registry.votes == [("lost", "v1", None)]
    f.library.count(6)
    await f.look()
    assert f.registry.snapshots == 1
    f.library.note([(7, "a")])  # and on it goes, in order
    await f.look()
    assert f.registry.snapshots == 1


async def test_a_word_that_comes_late_is_looked_at(f: Fixture) -> None:
    await f.caught_up(5)
    f.library.count(6)
    f.library.count(6)
    await f.look()
    f.offer("a", "v1")
    f.library.note([(6, "a")])
    await f.look()
    assert f.registry.votes == [("a", "v1", None)]


async def test_changes_that_a_server_counts_again_are_looked_at(f: Fixture) -> None:
    """It was killed and has lost its last second: numbers that were heard before now mean something else."""
    await f.caught_up(105)
    f.offer("a", "v1")
    f.library.note([(101, "a")])
    await f.look()
    assert f.registry.votes == [("a", "v1", None)]
    f.offer("b", "v1")
    f.library.note([(102, "b")])
    await f.look()
    assert f.registry.votes[1:] == [("b", "v1", None)]
    assert f.registry.snapshots == 0


async def test_a_snapshot_reads_what_is_known_here_and_forgets_what_is_gone(f: Fixture) -> None:
    for name, version in (("kept", "v1"), ("gone", "v2"), ("replaced", "v3")):
        await f.residents.load(version, name)
        f.residents.unpin(version)
    f.registry.record = {"kept": DeployedVfm("v1", 2.0, ""), "replaced": DeployedVfm("v4", 1.0, "")}
    f.scheduler.weights["gone"] = 1.0
    await f.caught_up(3)
    assert list(f.engine.loaded) == ["v1"]
    assert (f.scheduler.weights, f.residents.here()) == ({"kept": 2.0, "replaced": 1.0}, {"kept"})


async def test_a_removed_vfm_is_forgotten_unless_its_jobs_still_wait(f: Fixture) -> None:
    await f.residents.load("v1", "a")
    f.scheduler.weights["a"], f.scheduler.waiting = 1.0, 1
    await f.caught_up(1)  # it is in no record
    assert "a" in f.scheduler.weights
    assert list(f.engine.loaded) == ["v1"]
    f.residents.unpin("v1")  # its last job has ended
    assert f.engine.loaded == {}


async def test_a_broker_that_is_away_only_delays(f: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "_BACKOFF_S", 0.001)
    await f.caught_up(1)
    f.offer("a", "v1")
    f.library.note([(2, "a")])
    f.registry.away = 5
    await f.look()
    assert f.registry.votes == [("a", "v1", None)]
    assert not f.residents._lru.pinned("v1")


async def test_a_vote_that_is_lost_is_repeated_and_leaves_no_pin(f: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "_BACKOFF_S", 0.001)
    await f.caught_up(1)
    f.offer("a", "v1")
    vote, lost = f.registry.vote, iter([True])

    async def once_lost(*args: Any) -> str:
        if next(lost, False):
            raise BrokerUnavailable("the reply was lost")
        return await vote(*args)

    monkeypatch.setattr(f.registry, "vote", once_lost)
    f.library.note([(2, "a")])
    await f.look()
    assert f.registry.votes == [("a", "v1", None)]
    assert f.engine.loads == {"v1": 1}
    assert not f.residents._lru.pinned("v1")


async def test_an_offer_that_workers_died_of_is_refused_by_name_and_not_tried_again(f: Fixture) -> None:
    f.consumer.deaths["v1"] = 3
    f.registry.state = "rejected"
    await f.caught_up(1)
    f.offer("a", "v1")
    f.library.note([(2, "a")])
    await f.look()
    ((_, version, refusal),) = f.registry.votes
    assert version == "v1"
    assert isinstance(refusal, PackageRejected)
    assert all(part in refusal.message for part in ("3 workers have died", "v1", "'a'"))
    assert f.fetcher.asked == {}, "nobody has touched it"
    assert f.consumer.told[-1] == ("end", "v1", []), "nothing is being loaded any more"


@pytest.mark.parametrize("deaths", [0, 1, 2])
async def test_while_it_is_being_loaded_the_broker_knows_whom_to_blame(f: Fixture, deaths: int) -> None:
    f.consumer.deaths["v1"] = deaths
    await f.caught_up(1)
    f.fetcher.gate.clear()
    f.offer("a", "v1")
    f.library.note([(2, "a")])
    looking = asyncio.create_task(f.look())
    await until_soon(lambda: f.fetcher.asked["v1"])
    assert f.consumer.told == [("try", "v1", [])]
    f.fetcher.gate.set()
    await looking
    assert f.registry.votes == [("a", "v1", None)]
    assert f.consumer.told == [("try", "v1", []), ("end", "v1", [])]


async def test_what_was_loaded_once_in_this_life_is_not_told_of_again(f: Fixture) -> None:
    for _ in range(2):
        await f.loads.load("a", "v1")
        f.residents.unpin("v1")
        f.residents.forget("a")
    assert f.engine.loads == {"v1": 2}
    assert f.consumer.told == [("begin", "v1", []), ("end", "v1", [])]


async def test_two_that_wait_for_a_version_are_told_of_until_both_have_it(f: Fixture) -> None:
    f.fetcher.gate.clear()
    both = [asyncio.create_task(f.loads.load("a", "v1")) for _ in range(2)]
    await until_soon(lambda: len(f.consumer.told) == 2)
    other = asyncio.create_task(f.loads.load("b", "v2"))
    await until_soon(lambda: len(f.consumer.told) == 3)
    f.fetcher.gate.set()
    await asyncio.gather(*both, other)
    assert f.consumer.told[:3] == [("begin", "v1", []), ("begin", "v1", []), ("begin", "v2", [("a", "v1")])]
    assert sorted(version for does, version, _ in f.consumer.told if does == "end") == ["v1", "v2"]


async def test_an_offer_that_another_worker_tries_is_tried_when_that_is_through(f: Fixture) -> None:
    f.consumer.busy["v1"] = "another"
    await f.caught_up(1)
    f.offer("a", "v1")
    f.library.note([(2, "a")])
    looking = asyncio.create_task(f.look())
    await until_soon(lambda: len(f.consumer.told) > 2)
    assert f.fetcher.asked == {}
    f.consumer.busy.clear()
    await looking
    assert f.registry.votes == [("a", "v1", None)]
    assert f.loads._now == {}


async def test_a_worker_that_takes_longer_than_a_lease_is_not_waited_for(f: Fixture) -> None:
    f.consumer.busy["v1"] = "another"
    f.loads._lease_s = 0.1
    await asyncio.wait_for(f.loads.load("a", "v1"), 5)
    assert [does for does, _, _ in f.consumer.told][-2:] == ["insist", "end"]


async def test_each_worker_that_tries_an_offer_has_its_time(f: Fixture) -> None:
    """One after the other dies of it: who waits must not lose patience with the last one before its lease has run out."""
    f.loads._lease_s = 0.1
    loading = asyncio.create_task(f.loads.load("a", "v1"))
    for n in range(8):
        f.consumer.busy["v1"] = f"worker {n}"
        told = len(f.consumer.told)
        await until_soon(lambda: len(f.consumer.told) > told + 1)  # noqa: B023
    assert {does for does, _, _ in f.consumer.told} == {"begin"}
    f.consumer.busy.clear()
    await loading


async def test_a_refused_version_is_told_of_no_longer(f: Fixture) -> None:
    f.fetcher.failing["v1"] = PackageRejected("torn")
    with pytest.raises(PackageRejected, match="torn"):
        await f.loads.load("a", "v1")
    assert f.consumer.told[-1] == ("end", "v1", [])


async def test_a_broker_that_is_away_holds_up_no_load(f: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*args: Any) -> int:
        raise BrokerUnavailable("away")

    monkeypatch.setattr(f.consumer, "loading", away)
    await f.loads.load("a", "v1")
    assert list(f.engine.loaded) == ["v1"]
