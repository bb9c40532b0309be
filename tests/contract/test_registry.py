"""propose, vote, alter: versions are changed by compare-and-set, and serve once every live worker has accepted them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fmplex_broker.errors import (
    Conflict,
    InvalidInput,
    NoWorker,
    PackageRejected,
    Unavailable,
    UnknownVfm,
    VfmClosed,
)
from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.vfm import Limits, VfmChange, VfmSpec
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.messages import INTERACTIVE
from tests.contract.harness import BACKBONE, Bench, answer, job
from tests.support.hosting import on_hosted
from tests.support.waiting import until_soon

V0, V1, V2, V3, V9 = map(on_hosted, ("v0", "v1", "v2", "v3", "v9"))


def spec(name: str = "a", **more: Any) -> VfmSpec:
    return VfmSpec(name=name, backbone=BACKBONE, head=Embedding(), **more)


@pytest.fixture
async def registry(bench: Bench) -> Registry:
    registry = Registry(bench.redis, bench.scripts)
    await registry.register_backbone(BackboneInfo(name=BACKBONE, model="m", hidden=4, max_tokens=64))
    await bench.hosts(BACKBONE)
    return registry


async def offered(registry: Registry, vfm: str, version: str) -> None:
    """Wait until the version lies before the workers."""

    async def look() -> bool:
        try:
            candidate = (await registry.show(vfm)).candidate
        except UnknownVfm:
            return False
        return candidate is not None and candidate[0] == version

    await until_soon(look)


async def accept(registry: Registry, *workers: str, vfm: str = "a", version: str = V1) -> str:
    await offered(registry, vfm, version)
    for worker in workers:
        state = await registry.vote(BACKBONE, vfm, version, worker)
    return state


async def deployed(registry: Registry, *workers: str, **more: Any) -> None:
    status, _ = await asyncio.gather(registry.deploy(spec(**more), "v1"), accept(registry, *workers))
    assert (status.status, status.version) == ("serving", V1)


async def changes(bench: Bench) -> int:
    return int(await bench.redis.hget(bench.keys.vfms, ":changes") or 0)


# --- deploy -----------------------------------------------------------------------------------------------------------


async def test_every_live_worker_must_accept(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await bench.worker("w2")
    deploying = asyncio.create_task(registry.deploy(spec(), "v1"))
    assert await accept(registry, "w1", "w1", "stranger") == "waiting"
    assert await bench.enqueue(job()) == ["closed"]
    assert await registry.vote(BACKBONE, "a", V1, "w2") == "serving"
    status = await deploying
    assert (status.status, status.version, status.candidate, status.spec) == ("serving", V1, None, spec())
    assert await bench.enqueue(job()) == ["new"]


async def test_a_similar_name_is_no_vote(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await bench.worker("w11")
    deploying = asyncio.create_task(registry.deploy(spec(), "v1"))
    assert await accept(registry, "w11") == "waiting"
    assert await registry.vote(BACKBONE, "a", V1, "w1") == "serving"
    await deploying


async def test_the_dead_are_not_waited_for(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    dead = await bench.worker("dead")
    deploying = asyncio.create_task(registry.deploy(spec(), "v1"))
    assert await accept(registry, "w1") == "waiting"
    await bench.lapse(dead)
    assert (await deploying).status == "serving"


async def test_a_refusal_is_told_and_the_version_never_serves(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await bench.worker("w2")
    deploying = asyncio.create_task(registry.deploy(spec(), "v1"))
    await accept(registry, "w1")
    refusal = PackageRejected("head has 3 rows, 2 labels", field="head")
    assert await registry.vote(BACKBONE, "a", V1, "w2", refusal) == "rejected"
    with pytest.raises(PackageRejected, match="3 rows") as caught:
        await deploying
    assert caught.value.field == "head"
    assert await registry.vote(BACKBONE, "a", V1, "w2") == "rejected"  # too late to change one's mind
    status = await registry.show("a")
    assert (status.status, status.error["code"]) == ("rejected", "package_rejected")
    assert await bench.enqueue(job()) == ["closed"]


async def test_a_rejected_name_can_be_deployed_again(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    deploying = asyncio.create_task(registry.deploy(spec(), "v0"))
    await offered(registry, "a", V0)
    await registry.vote(BACKBONE, "a", V0, "w1", PackageRejected("no"))
    with pytest.raises(PackageRejected):
        await deploying
    await deployed(registry, "w1")
    assert (await registry.show("a")).error is None


async def test_conflict_when_the_name_is_taken(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await deployed(registry, "w1")
    with pytest.raises(Conflict, match="already"):
        await registry.deploy(spec(), "v2")
    await bench.hosts("other")
    with pytest.raises(Conflict, match="already"):
        await registry.deploy(VfmSpec(name="a", backbone="other", head=Embedding()), "v1")
    assert (await registry.show("a")).version == V1


async def test_of_two_who_deploy_one_name_one_wins(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    got = await asyncio.gather(
        registry.deploy(spec(weight=1), "v1"),
        registry.deploy(spec(weight=2), "v1"),
        accept(registry, "w1"),
        return_exceptions=True,
    )
    assert sorted(type(g).__name__ for g in got[:2]) == ["Conflict", "VfmStatus"]


async def test_unknown_backbone_is_named(registry: Registry) -> None:
    with pytest.raises(InvalidInput, match=BACKBONE) as caught:
        await registry.deploy(VfmSpec(name="a", backbone="nobody", head=Embedding()), "v1")
    assert caught.value.field == "backbone"
    with pytest.raises(UnknownVfm):
        await registry.find("a")


async def test_without_workers_it_waits_and_serves_when_one_comes(bench: Bench, registry: Registry) -> None:
    with pytest.raises(NoWorker):
        await registry.deploy(spec(), "v1", timeout_s=0.01)
    assert (await registry.show("a")).status == "validating"
    await bench.worker("w1")
    assert await registry.vote(BACKBONE, "a", V1, "w1") == "serving"


async def test_slow_workers_are_reported(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    with pytest.raises(Unavailable, match="not every worker"):
        await registry.deploy(spec(), "v1", timeout_s=0.01)


# --- change -----------------------------------------------------------------------------------------------------------


async def test_compare_and_set_on_the_generation(bench: Bench) -> None:
    await bench.serve("a")  # generations: 1 offered, 2 serving

    async def call(name: str, *args: Any) -> tuple[str, int]:
        state, generation = await bench.scripts(name, bench.keys.vfms, args)
        return state.decode(), generation

    assert await call("alter", "a", 1, "{}", 10, 2.0, 0, 0) == ("stale", 2)
    assert await call("alter", "a", 2, "{}", 10, 2.0, 0, 0) == ("ok", 3)
    assert await call("alter", "a", 2, "{}", 10, 3.0, 0, 0) == ("stale", 3)
    assert await call("propose", "a", V2, "{}", 2, 10, 1.0, 0, 0) == ("stale", 3)
    assert await call("propose", "a", V2, "{}", 3, 10, 1.0, 0, 0) == ("ok", 4)
    assert await call("propose", "a", V3, "{}", -1, 10, 1.0, 0, 0) == ("exists", 4)
    assert await call("alter", "b", 1, "{}", 10, 1.0, 0, 0) == ("unknown", 0)
    assert await call("propose", "b", V1, "{}", 1, 10, 1.0, 0, 0) == ("unknown", 0)
    await call("retire", "a", "drain", 1, b"")
    assert await call("propose", "a", V1, "{}", -1, 10, 1.0, 0, 0) == ("ok", 1)


async def test_alter_makes_no_version(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await deployed(registry, "w1")
    limits = Limits(max_pending=1, rate=1000, max_input_bytes=99)
    status = await registry.change("a", VfmChange(weight=4, limits=limits))
    assert (status.version, status.spec.weight, status.spec.limits) == (V1, 4, limits)
    assert await bench.enqueue(job(), job()) == ["new", "full"]


async def test_of_two_changes_at_once_none_is_lost(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await deployed(registry, "w1")
    got = await asyncio.gather(*(registry.change("a", VfmChange(weight=w)) for w in (2, 3, 4)), return_exceptions=True)
    won = [g for g in got if not isinstance(g, BaseException)]
    assert won
    assert {type(g) for g in got} - {type(won[0])} <= {Conflict}


async def test_what_a_change_does_not_name_stays_as_it_is(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await deployed(registry, "w1", weight=3, limits=Limits(max_pending=7, rate=50))
    status = await registry.change("a", VfmChange(limits=Limits(max_pending=9)))
    assert (status.spec.weight, status.spec.limits.max_pending, status.spec.limits.rate) == (3, 9, 50)


async def test_nothing_is_altered_while_a_version_is_offered(bench: Bench, registry: Registry) -> None:
    """It carries the values of when it was offered, and would bring them back."""
    await bench.worker("w1")
    await deployed(registry, "w1", weight=3)
    changing = asyncio.create_task(registry.offer("a", spec(), "v2"))
    await offered(registry, "a", V2)
    with pytest.raises(Conflict):
        await registry.change("a", VfmChange(weight=5))
    await registry.vote(BACKBONE, "a", V2, "w1")
    assert (await changing).spec.weight == 3
    assert (await registry.change("a", VfmChange(weight=5))).spec.weight == 5


async def test_a_package_for_another_backbone_is_no_version(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await deployed(registry, "w1")
    elsewhere = VfmSpec(name="a", backbone="other", head=Embedding())
    with pytest.raises(InvalidInput, match="other") as caught:
        await registry.offer("a", elsewhere, "v2")
    assert caught.value.field == "package"


async def test_a_take_over_is_a_change(bench: Bench, registry: Registry) -> None:
    """An offered version may have waited for the dead worker's vote alone: the living must look, and count again."""
    judge, dead = await bench.worker("w1"), await bench.worker("dead")
    with pytest.raises(Unavailable):
        await registry.deploy(spec(), "v1", timeout_s=0.01)
    assert await registry.vote(BACKBONE, "a", V1, "w1") == "waiting"
    before = await changes(bench)
    await bench.lapse(dead)
    assert (await judge.reap(10**6, max_attempts=3)).victim == "dead"
    assert await changes(bench) > before
    assert await registry.vote(BACKBONE, "a", V1, "w1") == "serving"


async def test_the_old_version_serves_until_the_new_one_is_accepted(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker("w1")
    await deployed(registry, "w1", weight=3)
    changing = asyncio.create_task(registry.offer("a", spec(weight=1), "v2"))
    await offered(registry, "a", V2)
    await bench.enqueue(job(id="before"))
    assert await registry.vote(BACKBONE, "a", V2, "w1") == "serving"
    status = await changing
    await bench.enqueue(job(id="after"))
    assert {j.job: j.version for j in await bench.claimed(worker)} == {"before": V1, "after": V2}
    assert status.version == V2
    assert status.spec.weight == 3  # the operator's, not the package's


async def test_a_refused_version_keeps_the_old_one_serving(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker("w1")
    await deployed(registry, "w1")
    changing = asyncio.create_task(registry.offer("a", spec(), "v2"))
    await offered(registry, "a", V2)
    await registry.vote(BACKBONE, "a", V2, "w1", PackageRejected("NaN in the head"))
    with pytest.raises(PackageRejected, match="NaN"):
        await changing
    status = await registry.show("a")
    assert (status.status, status.version, status.candidate) == ("serving", V1, None)
    assert status.error["message"] == "NaN in the head"
    await bench.enqueue(job())
    assert [j.version for j in await bench.claimed(worker)] == [V1]
    changing = asyncio.create_task(registry.offer("a", spec(), "v3"))
    await accept(registry, "w1", version=V3)
    assert ((await changing).version, (await registry.show("a")).error) == (V3, None)


async def test_the_same_version_again_is_no_change(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await deployed(registry, "w1")
    before = (await registry.show("a")).generation
    assert (await registry.offer("a", spec(), "v1")).generation == before


async def test_only_a_serving_vfm_can_be_changed(bench: Bench, registry: Registry) -> None:
    with pytest.raises(UnknownVfm):
        await registry.change("a", VfmChange(weight=2))
    with pytest.raises(NoWorker):
        await registry.deploy(spec(), "v1", timeout_s=0.01)
    with pytest.raises(VfmClosed):
        await registry.change("a", VfmChange(weight=2))


async def test_the_changes_counter_moves_with_every_change_and_nothing_else(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker("w1")
    steps = [await changes(bench)]

    async def moved() -> bool:
        steps.append(await changes(bench))
        return steps[-1] > steps[-2]

    with pytest.raises(Unavailable):
        await registry.deploy(spec(), "v1", timeout_s=0.01)
    assert await moved()
    await registry.vote(BACKBONE, "a", V1, "w1")
    assert await moved()
    await registry.change("a", VfmChange(weight=2))
    assert await moved()
    await bench.enqueue(job())
    await worker.settle([(j, answer()) for j in await bench.claimed(worker)])
    await worker.release([])
    await worker.recover([])
    assert not await moved()
    await registry.remove("a")
    assert await moved()
    assert (await worker.beat()).changes == steps[-1]


# --- remove and read --------------------------------------------------------------------------------------------------


async def test_remove_lets_jobs_drain_then_answers_the_rest(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker("w1")
    await deployed(registry, "w1")
    await bench.enqueue(job(id="running"), job(id="waiting"))
    held = await bench.claimed(worker, room=1)
    removing = asyncio.create_task(registry.remove("a", drain_s=0.01))
    await until_soon(lambda: bench.mail())
    assert [(m.job, m.reply.error.code) for m in await bench.mail()] == [("waiting", "vfm_closed")]
    assert not removing.done()
    await worker.settle([(j, answer()) for j in held])
    await removing
    with pytest.raises(UnknownVfm):
        await registry.show("a")
    with pytest.raises(UnknownVfm):
        await registry.remove("a")
    await deployed(registry, "w1")  # the name is free


async def test_what_can_be_read(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await deployed(registry, "w1")
    with pytest.raises(Unavailable):
        await registry.deploy(spec("b"), "v9", timeout_s=0.01)
    a, b = await registry.every()
    assert (a.name, a.status, b.name, b.status) == ("a", "serving", "b", "validating")
    assert (b.candidate[0], b.candidate[1].name, b.serving, b.spec.name) == (V9, "b", None, "b")
    assert list(await registry.backbones()) == [BACKBONE]
    assert await registry.live_workers(BACKBONE) == ["w1"]


async def test_a_name_left_by_somebody_who_died_can_be_taken(bench: Bench, registry: Registry) -> None:
    await bench.worker("w1")
    await bench.redis.hset("fmplex:vfms", "a", BACKBONE)
    await deployed(registry, "w1")


async def test_a_vote_for_what_is_gone(bench: Bench, registry: Registry) -> None:
    await bench.serve("a")
    assert await registry.vote(BACKBONE, "nobody", "v1", "w1") == "gone"
    assert await registry.vote(BACKBONE, "a", "v7", "w1") == "gone"
    assert await registry.vote(BACKBONE, "a", "v1", "w1") == "serving"
    assert (await bench.enqueue(job("a", cls=INTERACTIVE))) == ["new"]
