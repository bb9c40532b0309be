"""What can be read of the fleet-wide record: pages of vFMs, versions on offer, what served before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fmplex_broker.errors import InvalidInput, PackageRejected, UnknownVfm
from fmplex_broker.specs.deployments import BackboneInfo, DeployedVfm
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.vfm import Slo, Targets, VfmChange, VfmSpec
from fmplex_broker.streams.registry import Registry
from tests.contract.harness import BACKBONE, Bench, job
from tests.support.hosting import on_hosted
from tests.support.waiting import until_soon


@pytest.fixture
async def registry(bench: Bench) -> Registry:
    registry = Registry(bench.redis, bench.scripts)
    await registry.register_backbone(BackboneInfo(name=BACKBONE, model="m", hidden=4, max_tokens=64))
    return registry


def spec(name: str = "a", **more: Any) -> VfmSpec:
    return VfmSpec(name=name, backbone=BACKBONE, head=Embedding(), **more)


async def offer(bench: Bench, version: str, vfm: str = "a") -> None:
    """Put it before the workers."""
    generation = (await Registry(bench.redis, bench.scripts).show(vfm)).generation
    args = [vfm, version, spec(vfm).model_dump_json(), generation, 100, 1.0, 0, 0]
    assert (await bench.scripts("propose", bench.keys.vfms, args))[0] == b"ok"


async def replace(bench: Bench, *versions: str, vfm: str = "a") -> None:
    """Each is offered and accepted (by the only worker, w1)."""
    for version in versions:
        await offer(bench, version, vfm)
        assert await Registry(bench.redis, bench.scripts).vote(BACKBONE, vfm, version, "w1") == "serving"


async def past(registry: Registry, vfm: str = "a") -> list[str]:
    return [p.version for p in (await registry.show(vfm)).past]


# --- what served before -----------------------------------------------------------------------------------------------


async def test_past_versions_newest_first_with_the_time_they_were_replaced(bench: Bench, registry: Registry) -> None:
    await bench.worker()
    await bench.serve("a")
    assert await past(registry) == []
    begun = (await bench.redis.time())[0] * 1000
    await replace(bench, "v2", "v3")
    ended = (await bench.redis.time())[0] * 1000 + 1000
    status = await registry.show("a")
    assert (status.version, [p.version for p in status.past]) == ("v3", ["v2", "v1"])
    assert begun <= status.past[1].until_ms <= status.past[0].until_ms <= ended


async def test_a_version_is_in_the_past_once_and_never_while_it_serves(bench: Bench, registry: Registry) -> None:
    await bench.worker()
    await bench.serve("a")
    await replace(bench, "v2", "v1")  # rolled back
    assert await past(registry) == ["v2"]
    await replace(bench, "v2", "v1", "v3", "v2")
    assert await past(registry) == ["v3", "v1"]
    await replace(bench, "v2")  # the same again: no change
    assert await past(registry) == ["v3", "v1"]


async def test_the_last_sixteen_are_kept(bench: Bench, registry: Registry) -> None:
    await bench.worker()
    await bench.serve("a")
    await replace(bench, *(f"w{i}" for i in range(20)))
    assert await past(registry) == [f"w{i}" for i in range(18, 2, -1)]


async def test_what_never_served_is_not_in_the_past(bench: Bench, registry: Registry) -> None:
    await bench.worker()
    await bench.serve("a")
    await offer(bench, "v2")
    await registry.vote(BACKBONE, "a", "v2", "w1", PackageRejected("no"))
    await offer(bench, "v3")
    await offer(bench, "v4")  # over v3, on which nobody had voted
    await replace(bench, "v5")
    assert await past(registry) == ["v1"]


async def test_nothing_of_the_past_stays_when_the_vfm_is_removed(bench: Bench, registry: Registry) -> None:
    await bench.worker()
    await bench.serve("a")
    await replace(bench, "v2")
    await registry.remove("a")
    await bench.serve("a")
    assert await past(registry) == []


async def test_artifacts_are_all_that_may_yet_be_fetched(bench: Bench, registry: Registry) -> None:
    """What serves, what is on offer, what could be rolled back to: artifacts of all others may be deleted."""
    await bench.worker()
    assert await registry.artifacts() == set()
    await bench.serve("a", "b", digest="v1")
    await replace(bench, "v2")
    await offer(bench, "v3")
    await offer(bench, "x", vfm="b")
    assert await registry.artifacts() == {"v1", "v2", "v3", "x"}
    await registry.vote(BACKBONE, "b", "x", "w1", PackageRejected("no"))
    await registry.remove("a")
    assert await registry.artifacts() == {"v1"}


# --- what is on offer -------------------------------------------------------------------------------------------------


async def test_offers_are_exactly_what_is_being_voted_on(bench: Bench, registry: Registry) -> None:
    await bench.worker()
    await bench.serve("a", "b", "c", "d")
    assert await registry.offers(BACKBONE) == []
    for name in "dcba":
        await offer(bench, "v2", name)
    assert await registry.offers(BACKBONE) == ["a", "b", "c", "d"]
    await offer(bench, "v3", "a")  # over the other
    assert await registry.vote(BACKBONE, "a", "v2", "w1") == "gone"
    assert await registry.offers(BACKBONE) == ["a", "b", "c", "d"]
    assert await registry.vote(BACKBONE, "a", "v3", "w1") == "serving"
    assert await registry.vote(BACKBONE, "b", "v2", "w1", PackageRejected("no")) == "rejected"
    await registry.remove("c")
    assert await registry.offers(BACKBONE) == ["d"]
    await bench.worker("w2")
    assert await registry.vote(BACKBONE, "d", "v2", "w1") == "waiting"
    assert await registry.offers(BACKBONE) == ["d"]
    assert await registry.vote(BACKBONE, "d", "v2", "w2") == "serving"
    assert await registry.offers(BACKBONE) == []


async def test_a_vfm_that_is_being_removed_accepts_no_version(bench: Bench, registry: Registry) -> None:
    """It is closed at once, and no late vote opens it again."""
    worker = await bench.worker()
    await bench.serve("a")
    await bench.enqueue(job())
    held = await bench.claimed(worker)
    await offer(bench, "v2")
    assert (await bench.scripts("retire", bench.keys.vfms, ["a", "drain", 10, b""]))[0] == b"draining"
    assert await registry.offers(BACKBONE) == []
    assert await registry.vote(BACKBONE, "a", "v2", "w1") == "gone"
    assert (await registry.show("a")).status == "draining"
    assert await bench.enqueue(job()) == ["closed"]
    await worker.settle([(j, b"") for j in held])


# --- pages ------------------------------------------------------------------------------------------------------------


async def names(registry: Registry, **how: Any) -> tuple[list[str], int]:
    found, matching = await registry.page(**how)
    return [s.name for s in found], matching


async def test_pages_by_name_pattern_and_what_comes_after(bench: Bench, registry: Registry) -> None:
    await bench.serve("spam-en", "spam-de", "topics", "spam-fr")
    assert await names(registry) == (["spam-de", "spam-en", "spam-fr", "topics"], 4)
    assert await names(registry, match="spam-*", limit=2) == (["spam-de", "spam-en"], 3)
    assert await names(registry, match="spam-*", limit=2, after="spam-en") == (["spam-fr"], 3)
    assert await names(registry, match="spam-??", after="spam-e") == (["spam-en", "spam-fr"], 3)
    assert await names(registry, match="[st]o*") == (["topics"], 1)
    assert await names(registry, match="nothing*") == ([], 0)
    assert await names(registry, limit=0) == ([], 4)
    assert [s.name for s in await registry.every()] == (await names(registry))[0]


async def test_a_pattern_of_a_page_is_not_much_longer_than_a_name(bench: Bench, registry: Registry) -> None:
    """It becomes a regular expression, and every name is held against it."""
    await bench.serve("a")
    assert await names(registry, match="*a" * 100) == ([], 0)
    with pytest.raises(InvalidInput) as caught:
        await registry.page("*a" * 10_000)
    assert caught.value.field == "match"


async def test_a_page_of_some_is_as_if_the_others_were_not_there(bench: Bench, registry: Registry) -> None:
    await bench.serve("a-1", "b-1", "a-2", "b-2", "a-3")

    def of_a(name: str) -> bool:
        return name.startswith("a-")

    assert await names(registry, only=of_a) == (["a-1", "a-2", "a-3"], 3)
    assert await names(registry, only=of_a, limit=2) == (["a-1", "a-2"], 3)
    assert await names(registry, only=of_a, limit=2, after="a-2") == (["a-3"], 3)
    assert await names(registry, only=of_a, match="*-2") == (["a-2"], 1)
    assert await names(registry, only=of_a, match="b-*") == ([], 0)
    assert [s.name for s in await registry.every(only=of_a)] == ["a-1", "a-2", "a-3"]


async def test_many_are_read_in_several_round_trips_and_none_is_missed(bench: Bench, registry: Registry) -> None:
    everybody = [f"v{i:04}" for i in range(1201)]
    await bench.serve(*everybody)
    assert [s.name for s in await registry.every()] == everybody
    found = await registry.deployed(BACKBONE, everybody)
    assert list(found) == everybody
    assert set(found.values()) == {DeployedVfm("v1", 1.0, "")}


async def test_vfms_of_several_backbones_in_one_order(bench: Bench, registry: Registry) -> None:
    await bench.serve("a", "c")
    await registry.register_backbone(BackboneInfo(name="other", model="m", hidden=4, max_tokens=64))
    await bench.redis.hset("fmplex:vfms", "b", "other")
    record = await bench.redis.hget(bench.keys.vfms, "a")
    await bench.redis.hset("{other}:vfms", "b", record)
    assert [(s.name, s.backbone) for s in await registry.every()] == [("a", BACKBONE), ("b", "other"), ("c", BACKBONE)]


async def test_states_are_in_the_order_asked_for_and_none_where_there_is_none(bench: Bench, registry: Registry) -> None:
    await bench.serve("a", "b")
    b, nobody, a = await registry.states(BACKBONE, ["b", "nobody", "a"])
    assert (b.name, nobody, a.name) == ("b", None, "a")
    assert await registry.states(BACKBONE, []) == []


async def test_deployed_is_what_a_worker_must_know(bench: Bench, registry: Registry) -> None:
    await bench.worker()
    await bench.serve("a", weight=2.5)
    assert await registry.deployed(BACKBONE, ["a", "b"]) == {"a": DeployedVfm("v1", 2.5, ""), "b": None}
    await offer(bench, "v2")
    assert (await registry.deployed(BACKBONE, ["a"]))["a"].offered == "v2"
    await bench.scripts("propose", bench.keys.vfms, ["b", "v1", spec("b").model_dump_json(), -1, 100, 4.0, 0, 0])
    assert (await registry.deployed(BACKBONE, ["b"]))["b"] == DeployedVfm("", 4.0, "v1")


async def test_a_change_of_weight_is_seen_by_workers_and_makes_no_version(bench: Bench, registry: Registry) -> None:
    await bench.worker()
    await bench.serve("a")
    await registry.change("a", VfmChange(weight=7))
    assert await registry.deployed(BACKBONE, ["a"]) == {"a": DeployedVfm("v1", 7.0, "")}
    assert await past(registry) == []


@pytest.mark.parametrize("name", ["nobody", "ä", "x" * 5000, "", "a b", "*", "a:spec"])
async def test_a_name_that_does_not_exist_is_unknown_whatever_it_is(registry: Registry, name: str) -> None:
    for ask in (registry.find, registry.show):
        with pytest.raises(UnknownVfm):
            await ask(name)


async def test_targets_come_with_the_next_claim_and_are_lifted(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker()
    await bench.serve("a")
    changes = [
        (Slo(latency_ms=120), 0.4 * 120),
        (Slo(inter_token_ms=41), 0.8 * 41),  # the other one stays, and is the longer one now
        (Slo(latency_ms=None), 0.8 * 41),
        (Slo(inter_token_ms=None), 0),
        (Slo(ttft_ms=1), 0.4),
    ]
    for slo, pass_ms in changes:
        changed = await registry.change("a", VfmChange(slo=slo))
        assert changed.spec.slo.targets.pass_ms == pass_ms
        await bench.enqueue(job("a"))
        assert (await worker.claim({"interactive": 1})).terms["a"].targets == changed.spec.slo.targets


async def test_targets_that_a_vfm_brings_come_with_its_first_job(bench: Bench, registry: Registry) -> None:
    worker = await bench.worker()
    deploying = asyncio.create_task(registry.deploy(spec("a", slo=Slo(ttft_ms=300, inter_token_ms=50)), "v1"))
    await until_soon(lambda: bench.redis.hexists(bench.keys.vfms, "a:next"))
    await registry.vote(BACKBONE, "a", on_hosted("v1"), "w1")
    await deploying
    await bench.enqueue(job("a"))
    assert (await worker.claim({"interactive": 1})).terms["a"].targets == Targets(0, 300, 50)


@pytest.mark.parametrize("slow", ["before the offer", "after the offer"])
async def test_a_name_that_is_taken_again_while_it_is_dropped_is_not_lost(
    bench: Bench, registry: Registry, slow: str
) -> None:
    """Two teams race for one name: one removes its vFM, the other deploys, and the remover's last step comes late."""
    await bench.worker()
    await bench.serve("a")

    class Slow(Registry):
        async def _propose(self, spec: VfmSpec, version: str, expect: int) -> None:
            if slow == "before the offer":
                await registry._drop_name("a", BACKBONE)
            await super()._propose(spec, version, expect)

    while (await bench.scripts("retire", bench.keys.vfms, ["a", "answer", 256, b""]))[0] != b"gone":
        pass
    deploying = asyncio.create_task(Slow(bench.redis, bench.scripts).deploy(spec("a"), "v2"))
    await until_soon(lambda: bench.redis.hexists(bench.keys.vfms, "a:next"))
    if slow == "after the offer":
        await registry._drop_name("a", BACKBONE)
    assert await registry.vote(BACKBONE, "a", on_hosted("v2"), "w1") == "serving"
    assert (await deploying).status == "serving"
    assert (await registry.show("a")).version == on_hosted("v2")
