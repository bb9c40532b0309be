"""Workers hold as many versions as their budget allows, whatever is deployed, and give memory back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fmplex import AsyncClient, Client
from fmplex_broker.packages.package import Package, read_package
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.embedded import EmbeddedServer
from tests.support.fleets import gateway, worker, write_minilm_fleet
from tests.support.metrics import metric
from tests.support.outputs import difference
from tests.support.packages import LINEARS, write_package
from tests.support.waiting import until, wait_until

CLASSES = {"kind": "classification", "labels": ["a", "b"]}
TEXT = "a text that every version sees differently"
MIB = 1 << 20
OVERHEAD = 16_384  # bytes of bookkeeping that a version may be counted with, beside its files


def write_many(folder: Path, number: int, rank: int) -> list[Package]:
    """vFMs with LoRAs of one size on all linears."""
    with ThreadPoolExecutor(2) as pool:
        targets = tuple(LINEARS)
        make = [
            pool.submit(write_package, folder / f"many-{i:02}", CLASSES, rank=rank, targets=targets, seed=i)
            for i in range(number)
        ]
        return [read_package(m.result()) for m in make]


def residency(versions: float, package: Package, host_bytes: int = 0) -> dict[str, Any]:
    """A budget for so many versions like this one."""
    return {"device_bytes": int(versions * (package.nbytes + OVERHEAD)), "host_bytes": host_bytes}


@contextmanager
def site(folder: Path, settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Broker, one worker with these residency settings, gateway: the URLs of gateway and broker."""
    config = write_minilm_fleet(folder, worker={"lease_ms": 800, "residency": settings})
    with (
        EmbeddedServer(folder / "broker") as server,
        worker(config, server.url, folder / "worker.log"),
        gateway(config, server.url, folder / "gateway.log") as (url, _),
    ):
        wait_until(lambda: metric(url, "fmplex_worker_memory_bytes") > 0, "the worker has spoken")
        yield url, server.url


@pytest.fixture(scope="module")
def five(many: list[Package], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A worker with room for five: the URL of its gateway."""
    with site(tmp_path_factory.mktemp("five"), residency(5, many[0])) as (url, _):
        yield url


def resident(url: str) -> int:
    return int(metric(url, "fmplex_residency_versions"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Package]:
    return write_many(tmp_path_factory.mktemp("many"), 30, rank=8)


async def test_thirty_vfms_are_served_by_a_worker_with_room_for_five(many: list[Package], five: str) -> None:
    async with AsyncClient(five, retries=0) as client:
        wanted: dict[str, Any] = {}
        for package in many:
            await client.vfms.deploy(package)
            wanted[package.spec.name] = (await client.infer(package.spec.name, TEXT)).output
        outputs = list(wanted.values())
        assert all(difference(a, b) > 1e-4 for i, a in enumerate(outputs) for b in outputs[:i]), "all differ"
        for at_once in (1, 10, 30):
            for start in range(0, len(many), at_once):
                part = many[start : start + at_once]
                got = await asyncio.gather(*(client.infer(p.spec.name, [TEXT] * 3) for p in part))
                for package, results in zip(part, got, strict=True):
                    assert {artifact_of(r.version) for r in results} == {package.digest}
                    assert all(difference(r.output, wanted[package.spec.name]) <= 1e-5 for r in results)
                held, budget = await asyncio.to_thread(_bytes, five)
                assert 0 < held <= budget
    # Workers speak once a second.
    wait_until(lambda: metric(five, "fmplex_residency_loads_total") >= 3 * 25, "loads are counted")
    wait_until(lambda: metric(five, "fmplex_residency_evictions_total") >= 3 * 25, "evictions are counted")
    wait_until(lambda: metric(five, "fmplex_residency_jobs_total", found="miss") >= 3 * 25, "misses are counted")
    assert resident(five) <= 5
    assert metric(five, "fmplex_residency_bytes", tier="host") == 0
    with Client(five) as last:
        for package in many:
            last.vfms.remove(package.spec.name)


def _bytes(url: str) -> tuple[float, float]:
    return metric(url, "fmplex_residency_bytes", tier="device"), metric(url, "fmplex_residency_budget_bytes")


def test_memory_comes_back_when_vfms_are_removed(tmp_path: Path) -> None:
    """A dozen LoRAs of 10 MiB are removed: the process gives back four fifths of them at least, and counts none any more."""
    large = write_many(tmp_path / "packages", 12, rank=64)
    assert large[0].nbytes > 10 * MIB
    with site(tmp_path, {"host_bytes": 0}) as (url, _), Client(url) as client:
        for package in large:
            client.vfms.deploy(package)
            client.infer(package.spec.name, [TEXT] * 32)
        wait_until(lambda: resident(url) == len(large), "all are resident")
        held = metric(url, "fmplex_residency_bytes", tier="device")
        assert held >= len(large) * 10 * MIB
        wait_until(lambda: metric(url, "fmplex_worker_memory_bytes") >= held, "they take memory")
        full = metric(url, "fmplex_worker_memory_bytes")
        for package in large:
            client.vfms.remove(package.spec.name)
        wait_until(lambda: metric(url, "fmplex_residency_bytes", tier="device") == 0, "nothing is resident")
        assert resident(url) == 0
        wait_until(
            lambda: metric(url, "fmplex_worker_memory_bytes") <= full - 0.8 * held,
            f"of {full / MIB:.0f} MiB most of {held / MIB:.0f} MiB has come back",
            30,
        )


def test_a_version_that_is_replaced_gives_its_memory_back(five: str, tmp_path: Path) -> None:
    versions = [
        read_package(write_package(tmp_path / f"v{i}", CLASSES, name="one", rank=8, targets=tuple(LINEARS), seed=i))
        for i in range(6)
    ]
    with Client(five) as client:
        client.vfms.deploy(versions[0])
        for package in versions[1:]:
            client.infer("one", TEXT)
            client.vfms.update("one", package)
        assert artifact_of(client.infer("one", TEXT).version) == versions[-1].digest
        wait_until(lambda: resident(five) == 1, "only what serves is resident")
        assert metric(five, "fmplex_residency_bytes", tier="device") <= versions[0].nbytes + OVERHEAD
        client.vfms.remove("one")


async def test_jobs_that_a_replaced_version_still_has_leave_nothing_behind(five: str, tmp_path: Path) -> None:
    """It stays, or comes again, for as long as they wait, and goes with the last of them."""
    old, new = (read_package(write_package(tmp_path / f"{i}" / "queued", CLASSES, rank=8, seed=i)) for i in range(2))
    async with AsyncClient(five, retries=0) as client:
        await client.vfms.deploy(old)
        await client.infer("queued", TEXT)
        calls = [asyncio.create_task(client.infer("queued", [TEXT] * 1000)) for _ in range(2)]
        await until(
            lambda: metric(five, "fmplex_queue_jobs_total", vfm="queued") == 2001, "both calls are in the broker"
        )
        assert metric(five, "fmplex_queue_waiting", vfm="queued") > 0, "and most of them wait"
        assert artifact_of((await client.vfms.update("queued", new)).version or "") == new.digest
        assert artifact_of((await client.infer("queued", TEXT)).version) == new.digest
        assert {artifact_of(r.version) for call in calls for r in await call} == {old.digest}
    await until(lambda: resident(five) == 1, "only what serves is resident", 20)
    with Client(five) as last:
        last.vfms.remove("queued")


def test_a_version_larger_than_the_budget_is_refused_and_says_so(five: str, tmp_path: Path) -> None:
    large = write_package(tmp_path / "large", CLASSES, rank=64, targets=tuple(LINEARS))
    with Client(five) as client:
        with pytest.raises(
            Exception, match=r"worker\.residency\.device_bytes is .*; make the adapter smaller"
        ) as caught:
            client.vfms.deploy(large)
        assert getattr(caught.value, "code", None) == "package_rejected"
        assert client.vfms.show("large").status == "rejected"
        client.vfms.deploy({"name": "small", "backbone": "minilm", "head": {"kind": "embedding"}})
        assert client.infer("small", TEXT).output
        for name in ("large", "small"):
            client.vfms.remove(name)


def test_a_late_worker_with_room_for_two_serves_twelve(many: list[Package], tmp_path: Path) -> None:
    """It was not there when they were deployed, and whoever checked them is gone."""
    tight = tmp_path / "tight"
    config = write_minilm_fleet(tmp_path, worker={"lease_ms": 800})
    settings = {"lease_ms": 800, "residency": residency(2, many[0])}
    late = write_minilm_fleet(tight, worker=settings, artifacts=str(tmp_path / "artifacts"))
    with (
        EmbeddedServer(tmp_path / "broker") as server,
        gateway(config, server.url, tmp_path / "gateway.log") as (url, _),
        worker(config, server.url, tmp_path / "first.log") as first,
        Client(url) as client,
    ):
        for package in many[:12]:
            client.vfms.deploy(package)
        wanted = {p.spec.name: client.infer(p.spec.name, TEXT).output for p in many[:12]}
        with worker(late, server.url, tmp_path / "late.log"):
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 0
            for _ in range(2):
                for package in many[:12]:
                    result = client.infer(package.spec.name, TEXT)
                    assert artifact_of(result.version) == package.digest
                    assert difference(result.output, wanted[package.spec.name]) <= 1e-5
            wait_until(lambda: 0 < resident(url) <= 2, "it keeps to its budget")
            newer = write_package(tmp_path / "new" / "many-00", CLASSES, rank=4, seed=99)
            assert client.vfms.update("many-00", newer).status == "serving", "it votes"
            assert artifact_of(client.vfms.roll_back("many-00").version or "") == many[0].digest
            assert difference(client.infer("many-00", TEXT).output, wanted["many-00"]) <= 1e-5
