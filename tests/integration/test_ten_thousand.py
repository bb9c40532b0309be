"""Ten thousand vFMs are registered: what is asked of a few of them takes no longer for it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from fmplex import AsyncClient, Client
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import Package, bare
from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.specs.fleet import load_fleet
from fmplex_broker.specs.heads import Embedding, InputSpec
from fmplex_broker.specs.versions import artifact_of, version_of
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.keys import REGISTRY_VFMS, Keys
from fmplex_broker.streams.registry import Registry
from fmplex_worker.backbones.fingerprint import take_fingerprint
from fmplex_worker.backbones.loading import load_backbone
from tests.integration.shell import Shell
from tests.support.broker import Broker
from tests.support.fleets import gateway, spawn, write_minilm_fleet
from tests.support.outputs import difference
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

MANY = 10_000
AT_MOST_S = 10.0  # for anything that somebody waits for: generous, the machine may be busy
AT_ONCE = 64


def package(i: int) -> Package:
    """Every one is another version: its template has its number."""
    template = InputSpec(template=f"{i}: {{text}}")
    return bare(VfmSpec(name=f"team-{i % 100:02}-{i:05}", backbone="minilm", head=Embedding(), input=template))


async def register(url: str, hosts: Fingerprint) -> None:
    """As `Registry.deploy` does, with one voter that accepts everything, in as few round trips."""
    redis = open_redis(url)
    scripts, keys = Scripts(redis), Keys("minilm")
    voter = Consumer(redis, scripts, "minilm", "voter", lease_ms=600_000)
    registry = Registry(redis, scripts)
    await voter.join(hosts)
    packages = [package(i) for i in range(MANY)]
    await redis.hset(REGISTRY_VFMS, mapping={p.spec.name: "minilm" for p in packages})

    async def one(p: Package) -> None:
        version = version_of(p.digest, hosts.digest)
        await scripts("propose", keys.vfms, [p.spec.name, version, p.spec.model_dump_json(), -1, 4096, 1.0, 0, 0])
        assert await registry.vote("minilm", p.spec.name, version, "voter") == "serving"

    for start in range(0, MANY, AT_ONCE):
        await asyncio.gather(*(one(p) for p in packages[start : start + AT_ONCE]))
    await voter.leave()
    await redis.aclose()


@dataclass(frozen=True)
class Crowd:
    url: str
    broker_url: str
    log: Path
    began_s: float  # what the worker needed
    hosts: Fingerprint


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    place = tmp_path_factory.mktemp("crowd")
    config, log = write_minilm_fleet(place, worker={"lease_ms": 2000}), place / "worker.log"
    store = ArtifactStore(str(place / "artifacts"))
    for i in served():
        store.put(package(i))
    hosts = take_fingerprint(load_backbone(load_fleet(config).find(None), "cpu"))
    with EmbeddedServer(place / "broker") as server:
        asyncio.run(register(server.url, hosts))
        begun = time.monotonic()
        process = spawn("fmplex_worker", config, server.url, log)
        try:
            wait_until(
                lambda: process.poll() is not None or " serves backbone " in log.read_text(), "the worker serves"
            )
            began_s = time.monotonic() - begun
            with gateway(config, server.url, place / "gateway.log") as (url, _):
                yield Crowd(url, server.url, log, began_s, hosts)
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(60)


def served() -> list[int]:
    """Of whom a few are asked: the first, the last, some in between."""
    return [0, MANY - 1, *random.Random(1).sample(range(1, MANY - 1), 18)]


class Watch:
    """How long each thing takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, what: str) -> Watch:
        self._what, self._begun = what, time.monotonic()
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.seconds[self._what] = round(time.monotonic() - self._begun, 2)


async def test_any_of_ten_thousand_vfms_serves_on_a_worker_that_has_just_come(crowd: Crowd) -> None:
    print(f"the worker served after {crowd.began_s:.1f} s")
    assert crowd.began_s < 60
    async with AsyncClient(crowd.url, retries=0) as client:
        some = [package(i) for i in served()]
        begun = time.monotonic()
        results = await asyncio.gather(*(client.infer(p.spec.name, "a text") for p in some))
        assert time.monotonic() - begun < AT_MOST_S
    assert [r.version for r in results] == [version_of(p.digest, crowd.hosts.digest) for p in some]
    assert difference(results[0].output, results[1].output) > 1e-4, "each has its own template"


def test_looking_at_the_fleet_takes_no_longer_for_them(crowd: Crowd, tmp_path: Path) -> None:
    shell, watch = Shell(tmp_path, crowd.url), Watch()
    with httpx.Client(base_url=crowd.url, timeout=60) as http:
        with watch("GET /v1/vfms"):
            page = http.get("/v1/vfms").json()
        assert (len(page["vfms"]), page["total"]) == (100, MANY)
        with watch("GET /v1/vfms?limit=1000"):
            page = http.get("/v1/vfms", params={"limit": 1000, "after": page["vfms"][-1]["name"]}).json()
        assert (len(page["vfms"]), page["total"]) == (1000, MANY)
        with watch("GET /v1/models"):
            assert http.get("/v1/models").is_success
        with watch("GET /metrics"):
            metrics = http.get("/metrics").text
        assert f"fmplex_vfms_registered {MANY}" in metrics
        assert len(metrics) < 1_000_000, "idle vFMs take no lines"
    with watch("fmplex vfms"):
        assert f"… {MANY} in all; --match narrows" in shell("vfms")
    with watch("fmplex vfms --match"):
        matching = json.loads(shell("vfms", "--match", "team-42-*", "--all", "--json"))
    assert [v["name"] for v in matching] == [f"team-42-{i:05}" for i in range(42, MANY, 100)]
    with watch("fmplex top"):
        assert "quieter vFMs" in shell("top", "--broker", crowd.broker_url, "--once")
    print(watch.seconds)
    assert {what: s for what, s in watch.seconds.items() if s > AT_MOST_S} == {}


def test_a_change_among_them_is_quick_and_no_loop_stands_still(crowd: Crowd) -> None:
    """All changes are forgotten by the feed at once; jobs go on meanwhile, and the worker keeps its lease."""
    name, broker = package(MANY // 2).spec.name, Broker(crowd.broker_url)
    (worker,) = broker.workers()
    with Client(crowd.url, retries=0) as client:
        broker._redis.delete(Keys("minilm").control)
        begun = time.monotonic()
        assert client.vfms.update(name, weight=3).weight == 3
        newer = package(MANY // 2).spec.model_copy(update={"input": InputSpec(template="new: {text}")})
        assert artifact_of(client.vfms.update(name, newer).version or "") == bare(newer).digest
        assert artifact_of(client.infer(name, "a text").version) == bare(newer).digest
        client.vfms.remove(name)
        assert client.vfms.count() == MANY - 1
        assert [vfm.name for vfm in client.vfms.list("team-99-*", limit=2)] == ["team-99-00099", "team-99-00199"]
        assert time.monotonic() - begun < AT_MOST_S
        assert len(client.vfms.list()) == MANY - 1
    assert broker.workers() == {worker}, "the same life: its loop never stood still for a lease"
    assert "lost the lease" not in crowd.log.read_text()
    assert broker.traces(name) == []
    broker.close()
