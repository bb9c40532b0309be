"""The life of a vFM: deployed, changed, replaced and removed while everything goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fmplex import (
    AsyncClient,
    Classification,
    Client,
    Conflict,
    Embedding,
    FmplexError,
    InputSpec,
    InvalidInput,
    Slo,
    TooLarge,
    UnknownVfm,
    VfmClosed,
    VfmInfo,
)
from fmplex.local import LocalFleet
from fmplex_broker.streams.queue_client import QueueClient
from tests.integration.conftest import TASKS, TEXTS
from tests.support.broker import Broker
from tests.support.fleets import frozen
from tests.support.outputs import difference
from tests.support.packages import write_package
from tests.support.waiting import until

NewVfm = Callable[..., str]
CLASSES = {"kind": "classification", "labels": ["a", "b"]}


async def test_a_vfm_lives_from_deployment_to_removal(client: AsyncClient, place: Path, broker: Broker) -> None:
    folder = place / "vfms" / "life"
    if not folder.exists():
        write_package(folder, CLASSES, rank=4, weight=2.5, slo={"deadline_ms": 5000})
    deployed = await client.vfms.deploy(folder)
    assert (deployed.name, deployed.status, deployed.weight) == ("life", "serving", 2.5)
    assert deployed.head == Classification(labels=("a", "b"))
    assert deployed.slo == Slo(deadline_ms=5000)
    assert await client.vfms.show("life") == deployed
    assert deployed in await client.vfms.list()
    assert (await client.infer("life", "a text")).version == deployed.version
    await client.vfms.remove("life")
    for call in (
        client.vfms.show("life"),
        client.infer("life", "x"),
        client.vfms.update("life", weight=2),
        client.vfms.remove("life"),
    ):
        with pytest.raises(UnknownVfm, match=r"no vFM 'life'"):
            await call
    assert broker.traces("life") == [], "a removed vFM leaves nothing in the broker"
    again = await client.vfms.deploy(folder)
    assert again.version == deployed.version, "the version is its content"
    await client.vfms.remove("life")


async def test_a_bare_backbone_is_deployable(client: AsyncClient, references: dict[str, list[Any]]) -> None:
    spec = {"name": "bare", "backbone": "minilm", "head": {"kind": "embedding"}}
    deployed = await client.vfms.deploy(spec)
    assert (deployed.head, deployed.heads, deployed.input, deployed.past) == (Embedding(), {}, InputSpec(), ())
    assert difference((await client.infer("bare", TEXTS[0])).output, references["embed"][0]) <= 1e-5
    with pytest.raises(Conflict, match="already a vFM 'bare'"):
        await client.vfms.deploy(spec)
    await client.vfms.remove("bare")


async def test_weight_limits_and_slo_change_at_once_and_make_no_version(
    client: AsyncClient, fleet: LocalFleet, new_vfm: NewVfm
) -> None:
    name = new_vfm(weight=1.0, limits={"max_pending": 100})
    before = await client.vfms.show(name)
    after = await client.vfms.update(name, weight=4, limits={"max_pending": 2}, slo={"deadline_ms": 1234})
    assert (after.weight, after.limits.max_pending, after.slo.deadline_ms) == (4, 2, 1234)
    assert after.version == before.version
    assert after.generation > before.generation
    with pytest.raises(TooLarge, match="holds 2"):
        await client.infer(name, ["a", "b", "c"])
    assert await client.vfms.update(name, weight=5) == await client.vfms.show(name)
    assert (await client.vfms.show(name)).limits.max_pending == 2, "what is not named stays"
    with pytest.raises(InvalidInput, match="colour"):
        await client.vfms.update(name, colour="red")


async def test_a_new_version_comes_without_a_single_failure(client: AsyncClient, place: Path, new_vfm: NewVfm) -> None:
    name = new_vfm(CLASSES, rank=4, seed=1)
    versions = [(await client.vfms.show(name)).version]
    outputs = {versions[0]: (await client.infer(name, TEXTS[0])).output}
    seen: list[tuple[str, Any]] = []
    over = asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            result = await client.infer(name, TEXTS[0])
            seen.append((result.version, result.output))

    asking = [asyncio.create_task(ask()) for _ in range(8)]
    for seed in (2, 3, 1):
        folder = place / "vfms" / f"{name}-{client_kind(client)}-{seed}"
        changed = await client.vfms.update(name, package=write_package(folder, CLASSES, name=name, rank=4, seed=seed))
        assert changed.status == "serving"
        result = await client.infer(name, TEXTS[0])
        assert result.version == changed.version, "from the answer on, the new version serves"
        outputs.setdefault(result.version, result.output)
        count = len(seen)
        await until(lambda count=count: len(seen) > count + 16, "the others have gone on")
    over.set()
    await asyncio.gather(*asking)
    assert len(outputs) == 3, "the last package is the first version again"
    assert {version for version, _ in seen} == set(outputs)
    assert all(difference(output, outputs[version]) <= 1e-5 for version, output in seen)


def client_kind(client: AsyncClient) -> str:
    return type(client._caller.transport()).__name__


async def test_jobs_that_wait_run_on_the_version_they_were_sent_to(
    fleet: LocalFleet, place: Path, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm(CLASSES, seed=1)
    folder = write_package(place / "vfms" / f"{name}-new", CLASSES, name=name, seed=2)
    async with AsyncClient(fleet.broker_url, artifacts=fleet.artifacts) as client:
        old = (await client.vfms.show(name)).version
        with frozen(fleet.processes["worker-0"]):
            waiting = [await client.enqueue(name, TEXTS[0]) for _ in range(5)]
            update = asyncio.create_task(client.vfms.update(name, package=folder))
            await asyncio.wait({update}, timeout=0.5)
            assert not update.done(), "no version serves that no worker has checked"
        new = (await update).version
        assert {(await handle.result(timeout=90)).version for handle in waiting} == {old}
        assert (await client.infer(name, TEXTS[0])).version == new


async def test_a_package_of_another_vfm_is_no_new_version(client: AsyncClient, place: Path, new_vfm: NewVfm) -> None:
    name = new_vfm(CLASSES)
    folder = place / "vfms" / f"{name}-stranger-{client_kind(client)}"
    with pytest.raises(InvalidInput, match="is of vFM 'stranger'"):
        await client.vfms.update(name, package=write_package(folder, CLASSES, name="stranger"))
    moved = place / "vfms" / f"{name}-moved-{client_kind(client)}"
    with pytest.raises(InvalidInput, match="backbone"):
        await client.vfms.update(name, package=write_package(moved, CLASSES, name=name, backbone="other"))
    assert (await client.infer(name, "x")).output


async def test_of_many_who_deploy_one_name_one_wins(client: AsyncClient) -> None:
    spec = {"name": "wanted", "backbone": "minilm", "head": {"kind": "features"}}
    got = await asyncio.gather(*(client.vfms.deploy(spec) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(g, VfmInfo) for g in got) == 1
    assert sum(isinstance(g, Conflict) for g in got) == 7
    assert (await client.infer("wanted", "x")).output
    await client.vfms.remove("wanted")


async def test_of_many_who_change_one_vfm_none_is_lost_unheard(client: AsyncClient, new_vfm: NewVfm) -> None:
    name = new_vfm()
    got = await asyncio.gather(*(client.vfms.update(name, weight=10 + i) for i in range(8)), return_exceptions=True)
    done = [vfm.weight for vfm in got if isinstance(vfm, VfmInfo)]
    assert done
    assert all(isinstance(g, VfmInfo | Conflict) for g in got)
    assert (await client.vfms.show(name)).weight in done


async def test_removal_answers_everybody(client: AsyncClient, broker: Broker, new_vfm: NewVfm) -> None:
    name = new_vfm(rank=2)
    calls = [asyncio.create_task(client.infer(name, [f"text {i} {j}" for j in range(50)])) for i in range(10)]
    await until(lambda: broker.depth(name) > 0 or all(c.done() for c in calls), "jobs are queued")
    await client.vfms.remove(name)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(r, list | VfmClosed | UnknownVfm) for r in results), results
    with pytest.raises(UnknownVfm):
        await client.infer(name, "x")
    assert broker.traces(name) == []


async def test_jobs_of_a_removed_vfm_that_nobody_runs_are_answered(
    fleet: LocalFleet, broker: Broker, new_vfm: NewVfm
) -> None:
    """`remove` is patient for ten seconds; this one is not."""
    name = new_vfm()
    async with AsyncClient(fleet.broker_url) as client:
        session = QueueClient.connect(fleet.broker_url)
        with frozen(fleet.processes["worker-0"]):
            handles = [await client.enqueue(name, f"text {i}") for i in range(5)]
            await session.registry.remove(name, drain_s=0.1)
            for handle in handles:
                with pytest.raises(VfmClosed, match="removed before this job ran"):
                    await handle.result(timeout=60)
        await session.close()
    assert broker.traces(name) == []


async def test_a_client_that_remembers_a_removed_vfm_is_told(fleet: LocalFleet, new_vfm: NewVfm) -> None:
    name = new_vfm()
    async with AsyncClient(fleet.broker_url) as direct, AsyncClient(fleet.gateway_url) as other:
        assert (await direct.infer(name, "x")).output
        await other.vfms.remove(name)
        with pytest.raises(UnknownVfm):
            await direct.infer(name, "x")


def test_the_list_is_whole_and_sorted(url: str) -> None:
    with Client(url) as client:
        listed = client.vfms.list()
    names = [vfm.name for vfm in listed]
    assert set(TASKS) <= set(names)
    assert names == sorted(names)
    assert all(vfm.status in ("serving", "rejected") for vfm in listed)
    assert {vfm.head.kind for vfm in listed if vfm.name in TASKS} == {task.head["kind"] for task in TASKS.values()}


async def test_every_error_of_a_life_is_typed(client: AsyncClient) -> None:
    calls = {
        client.vfms.deploy({"name": "x"}): 422,
        client.vfms.deploy("/nowhere"): 422,
        client.vfms.show("nobody"): 404,
        client.vfms.update("nobody", weight=1): 404,
        client.vfms.update("embed", limits={"max_pending": 0}): 422,
    }
    for call, status in calls.items():
        with pytest.raises(FmplexError) as caught:
            await call
        assert caught.value.status == status
    for name in ("../embed", "", "a b", "a:b"):
        with pytest.raises((InvalidInput, UnknownVfm)):
            await client.vfms.show(name)
