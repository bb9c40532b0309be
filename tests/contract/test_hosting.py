"""What the workers of a backbone host is one thing at a time, and what was deployed for another never answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fmplex_broker.errors import Conflict, InvalidInput, StaleVersion
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.deployments import BackboneInfo, VfmStatus
from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.specs.heads import Embedding, InputSpec
from fmplex_broker.specs.versions import version_of
from fmplex_broker.specs.vfm import VfmChange, VfmSpec
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.streams.registry import Registry
from tests.contract.harness import BACKBONE, LEASE_MS, Bench, job
from tests.support.hosting import HOSTED, OTHER, on_hosted
from tests.support.waiting import until_soon


def spec(name: str = "a", **more: Any) -> VfmSpec:
    return VfmSpec(name=name, backbone=BACKBONE, head=Embedding(), **more)


@pytest.fixture
async def registry(bench: Bench) -> Registry:
    registry = Registry(bench.redis, bench.scripts)
    await registry.register_backbone(BackboneInfo(name=BACKBONE, model="m", hidden=4, max_tokens=64))
    return registry


async def deploys(registry: Registry, artifact: str, worker: str, vfm: str = "a") -> VfmStatus:
    """Deploy an artifact; `worker` accepts whatever is offered."""

    async def offered() -> str | None:
        found = (await registry.states(BACKBONE, [vfm]))[0]
        return found.candidate[0] if found and found.candidate else None

    deploying = asyncio.create_task(registry.deploy(spec(vfm), artifact))
    version = await until_soon(offered)
    assert await registry.vote(BACKBONE, vfm, version, worker) == "serving"
    return await deploying


async def replaced(bench: Bench, old: Consumer, hosts: Fingerprint = OTHER) -> Consumer:
    """End the old worker in order, and start one that hosts something else."""
    await old.leave()
    return await bench.worker("new", hosts=hosts)


# --- joining ----------------------------------------------------------------------------------------------------------


async def test_who_hosts_the_same_joins(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await bench.worker("w2", hosts=HOSTED.model_copy(update={"model": "/another/place", "device": "cuda"}))
    assert await registry.live_workers(BACKBONE) == ["w1", "w2"]


@pytest.mark.parametrize(
    ("change", "advice"),
    [({"weights": "w1"}, "another name"), ({"dtype": "bfloat16", "device": "cuda"}, "set dtype")],
)
async def test_who_hosts_something_else_is_refused_with_both_sides_named(
    bench: Bench, registry: Registry, change: dict[str, str], advice: str
) -> None:
    await bench.worker("w1")
    mine = HOSTED.model_copy(update=change)
    stranger = Consumer(bench.redis, bench.scripts, BACKBONE, "w2", lease_ms=LEASE_MS)
    with pytest.raises(Conflict, match=advice) as caught:
        await stranger.join(mine)
    for part in (BACKBONE, str(HOSTED), str(mine), next(iter(change))):
        assert part in caught.value.message
    assert await registry.live_workers(BACKBONE) == ["w1"]
    assert await registry.hosted(BACKBONE) == HOSTED


async def test_another_fingerprint_comes_once_nobody_holds_the_old_one(bench: Bench, registry: Registry) -> None:
    await replaced(bench, await bench.worker("w1"))
    assert await registry.hosted(BACKBONE) == OTHER


async def test_who_was_thought_dead_does_not_come_back_among_others(bench: Bench) -> None:
    """An expired lease is revived by a beat; not so when workers that host something else have come meanwhile."""
    old = await bench.worker("old")
    await bench.lapse(old)
    await bench.worker("new", hosts=OTHER)
    assert not (await old.beat()).alive
    again = Consumer(bench.redis, bench.scripts, BACKBONE, "again", lease_ms=LEASE_MS)
    with pytest.raises(Conflict):
        await again.join(HOSTED)


async def test_the_jobs_of_who_was_thought_dead_are_taken_over(bench: Bench) -> None:
    await bench.serve("a")
    old = await bench.worker("old")
    await bench.enqueue(job())
    assert await bench.claimed(old)
    await bench.lapse(old)
    new = await bench.worker("new", hosts=OTHER)
    assert (await new.reap(10**6, max_attempts=3)).victim == "old"
    assert [j.version for j in await bench.claimed(new)] == ["v1"]


async def test_each_backbone_hosts_its_own(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    elsewhere = Consumer(bench.redis, bench.scripts, "other", "w2", lease_ms=LEASE_MS)
    assert (await elsewhere.join(OTHER)).alive
    assert (await registry.hosted(BACKBONE), await registry.hosted("other")) == (HOSTED, OTHER)
    assert await registry.hosted("nobody") is None


# --- versions ---------------------------------------------------------------------------------------------------------


async def test_a_version_is_an_artifact_on_what_is_hosted(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker("w1")
    assert (await deploys(registry, "v1", "w1")).version == on_hosted("v1")
    new = await replaced(bench, worker)
    assert (await deploys(registry, "v1", new.worker, "b")).version == version_of("v1", OTHER.digest)
    assert await registry.artifacts() == {"v1"}


async def test_a_stale_vfm_says_so_and_takes_no_jobs(bench: Bench, registry: Registry, session: QueueClient) -> None:
    worker = await bench.worker("w1")
    await deploys(registry, "v1", "w1")
    await bench.enqueue(job(id="before"))
    new = await replaced(bench, worker)
    status = await registry.show("a")
    assert (status.status, status.hosted, status.version) == ("stale", OTHER.digest, on_hosted("v1"))
    assert await bench.enqueue(job()) == ["stale"]
    with pytest.raises(StaleVersion, match=rf"'a'.*{HOSTED.digest}.*{OTHER.digest}.*deploy it again"):
        await session.submit("a", ["text"])
    # What was queued before goes to whoever is there, and says for which weights it was.
    assert [j.version for j in await bench.claimed(new)] == [on_hosted("v1")]


async def test_it_serves_again_where_its_weights_come_back(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker("w1")
    await deploys(registry, "v1", "w1")
    new = await replaced(bench, worker)
    await new.leave()
    await bench.worker("w3")
    assert (await registry.show("a")).status == "serving"
    assert await bench.enqueue(job()) == ["new"]


async def test_deploying_the_same_package_again_makes_the_new_version(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker("w1")
    await deploys(registry, "v1", "w1")
    await registry.change("a", VfmChange(weight=3))
    new = await replaced(bench, worker)
    status = await deploys(registry, "v1", new.worker)
    assert (status.status, status.version) == ("serving", version_of("v1", OTHER.digest))
    assert [p.version for p in status.past] == [on_hosted("v1")]
    assert status.spec.weight == 3  # the operator's, as with every new version
    assert await bench.enqueue(job()) == ["new"]


async def test_a_stale_vfm_is_not_changed_but_can_be_removed(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker("w1")
    await deploys(registry, "v1", "w1")
    await replaced(bench, worker)
    before = await registry.show("a")
    with pytest.raises(StaleVersion, match="'a'"):
        await registry.change("a", VfmChange(weight=2))
    assert await registry.show("a") == before
    await registry.remove("a", drain_s=0)
    assert await registry.every() == []


async def test_what_served_on_other_weights_cannot_be_rolled_back_to(
    bench: Bench, registry: Registry, tmp_path: Any
) -> None:
    deployer = Deployer(registry, ArtifactStore(str(tmp_path)))
    packages = [bare(spec(input=InputSpec(template=f"{i}: {{text}}"))) for i in range(3)]
    worker, versions = await bench.worker("w1"), []
    for package in packages[:2]:
        versions.append(await serving(registry, "w1", deployer, package))
    new = await replaced(bench, worker)
    for version in (None, versions[0]):
        with pytest.raises(StaleVersion, match=HOSTED.digest):
            await deployer.roll_back("a", version)
    with pytest.raises(InvalidInput) as caught:
        await deployer.roll_back("a", "nonsense")
    assert caught.value.field == "version"
    versions.append(await serving(registry, new.worker, deployer, packages[2]))
    with pytest.raises(StaleVersion):
        await deployer.roll_back("a")
    versions.append(await serving(registry, new.worker, deployer, packages[0]))
    # The newest that was made for these weights, whatever has served since on others.
    back = asyncio.create_task(deployer.roll_back("a"))
    assert await accepted(registry, new.worker) == versions[2]
    assert (await back).version == versions[2]


async def serving(registry: Registry, worker: str, deployer: Deployer, package: Any) -> str:
    """Deploy a package, or offer it, and accept it; return its version."""
    there = (await registry.states(BACKBONE, ["a"]))[0]
    call = deployer.deploy(package) if there is None else deployer.update("a", package)
    going = asyncio.create_task(call)
    version = await accepted(registry, worker)
    await going
    return version


async def accepted(registry: Registry, worker: str) -> str:
    async def offered() -> str | None:
        found = (await registry.states(BACKBONE, ["a"]))[0]
        return found.candidate[0] if found and found.candidate else None

    version: str = await until_soon(offered)
    assert await registry.vote(BACKBONE, "a", version, worker) == "serving"
    return version
