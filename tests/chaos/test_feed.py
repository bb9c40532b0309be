"""The feed of changes is a hint: whatever of it is lost, every worker ends up with what the registry says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from fmplex import AsyncClient, Client
from fmplex.local import LocalFleet
from fmplex_broker.packages.package import read_package
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.keys import Keys
from tests.chaos.conftest import CLASSES, TEXT, Crew
from tests.support.fleets import frozen, write_minilm_fleet
from tests.support.metrics import metric
from tests.support.packages import write_package
from tests.support.waiting import until, wait_until

CONTROL = Keys("minilm").control
VFMS = Keys("minilm").vfms
HOLD_S = 20  # a lease so long that standing still costs nothing but words


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalFleet, redis.Redis]]:
    """One worker with a long lease, so that it may stand still and stay itself."""
    place = tmp_path_factory.mktemp("feed")
    config = write_minilm_fleet(place, worker={"lease_ms": HOLD_S * 300})  # a beat every two seconds
    with LocalFleet(config, port=0, data=place / "data") as fleet:
        broker = redis.Redis.from_url(fleet.broker_url)
        yield fleet, broker
        broker.close()


def lose(broker: redis.Redis, how: str) -> None:
    """All that was said and not yet heard."""
    if how == "trimmed":
        broker.xtrim(CONTROL, maxlen=0, approximate=False)
    elif how == "deleted":
        broker.delete(CONTROL)
    else:  # buried under other words, of which only the last few are kept
        for i in range(300):
            broker.xadd(CONTROL, {"cancel": f"interactive:nobody {i}-0"}, maxlen=256, approximate=False)


@pytest.mark.parametrize("how", ["trimmed", "deleted", "buried"])
def test_a_worker_votes_on_offers_of_which_it_did_not_hear(
    slow: tuple[LocalFleet, redis.Redis], tmp_path: Path, how: str
) -> None:
    fleet, broker = slow
    packages = [read_package(write_package(tmp_path / f"unheard-{i}", CLASSES, seed=i)) for i in range(3)]

    async def deploy() -> None:
        async with AsyncClient(fleet.gateway_url, retries=0) as client:
            with frozen(fleet.processes["worker-0"]):
                offers = [asyncio.create_task(client.vfms.deploy(p)) for p in packages]
                await until(lambda: broker.scard(Keys("minilm").offers) == len(packages), "all are on offer")
                lose(broker, how)
            async with asyncio.timeout(HOLD_S):
                deployed = await asyncio.gather(*offers)
            assert [vfm.status for vfm in deployed] == ["serving"] * len(packages)
            for package in packages:
                assert artifact_of((await client.infer(package.spec.name, TEXT)).version) == package.digest
                await client.vfms.remove(package.spec.name)

    asyncio.run(deploy())


@pytest.mark.parametrize("how", ["trimmed", "deleted", "buried"])
def test_a_worker_lets_go_of_what_was_removed_and_replaced_unheard(
    slow: tuple[LocalFleet, redis.Redis], tmp_path: Path, how: str
) -> None:
    fleet, broker = slow
    with Client(fleet.gateway_url, retries=0) as client:
        old = read_package(write_package(tmp_path / "gone", CLASSES, rank=4, seed=1))
        client.vfms.deploy(old)
        client.vfms.deploy(write_package(tmp_path / "stays", CLASSES, rank=4, seed=2))
        wait_until(lambda: metric(fleet.gateway_url, "fmplex_residency_versions") == 2, "both are resident")
        changes = int(broker.hget(VFMS, ":changes") or 0)
        with frozen(fleet.processes["worker-0"]):
            client.vfms.remove("gone")
            client.vfms.update("stays", weight=7)
            assert int(broker.hget(VFMS, ":changes") or 0) > changes
            lose(broker, how)
        wait_until(
            lambda: metric(fleet.gateway_url, "fmplex_residency_versions") == 1, "what was removed is gone", HOLD_S
        )
        assert client.infer("stays", TEXT).output
        wait_until(lambda: metric(fleet.gateway_url, "fmplex_vfm_weight", vfm="stays") == 7, "it knows the weight")
        client.vfms.remove("stays")
        wait_until(lambda: metric(fleet.gateway_url, "fmplex_residency_versions") == 0, "nothing is left")
    assert fleet.dead() == []


async def test_a_worker_that_stood_still_during_changes_serves_what_came_of_them(
    fleet: LocalFleet, crew: Crew, tmp_path: Path
) -> None:
    """So long that the other one took over: it begins a new life and knows what changed, or learns it with the first job."""
    _, process = crew.any()
    other = next(p for p in crew.processes().values() if p is not process)
    versions = [read_package(write_package(tmp_path / f"{i}" / "still", CLASSES, rank=4, seed=i)) for i in range(3)]
    async with AsyncClient(fleet.gateway_url, retries=5) as client:
        await client.vfms.deploy(versions[0])
        await client.infer("still", [TEXT] * 8)
        with frozen(process):
            # The vote of one that stands still is waited for until its lease has run out.
            for version in versions[1:]:
                assert artifact_of((await client.vfms.update("still", version)).version or "") == version.digest
        await until(lambda: all(crew.serves(name) for name in crew.processes()), "both serve")
        with frozen(other):
            results = await asyncio.wait_for(client.infer("still", [TEXT] * 8), 60)
        assert {artifact_of(r.version) for r in results} == {versions[-1].digest}
        await client.vfms.remove("still")
