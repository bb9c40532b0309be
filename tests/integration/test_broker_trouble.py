"""A worker, a gateway and the SDK in front of a broker that refuses, or that cannot be reached; on the loops that they run on.

The worker is the real one, with an engine that does nothing; the broker is a real server behind a proxy.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.noop import BACKBONE, FINGERPRINT, NoopEngine
from fmplex import AsyncClient
from fmplex_broker.errors import BrokerFault, BrokerMisconfigured, BrokerUnavailable, Conflict, FmplexError
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.gateway import GatewaySpec
from fmplex_broker.specs.heads import Features
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.app import create_app
from fmplex_worker.host.service import Worker
from tests.support.fleets import write_fleet
from tests.support.loops import on_both_loops, on_loops
from tests.support.troubled_proxy import Trouble, TroubledProxy
from tests.support.waiting import SOON_S, until

LEASE_S = 3.0
REFUSALS = [
    "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "ERR max number of clients reached",
    "NOPERM User fmplex has no permissions to run the 'evalsha' command",
    "MOVED 3999 127.0.0.1:6381",
    "ERR unknown command 'EVALSHA', with args beginning with: ",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
]
UNREACHABLE: list[Trouble] = ["close", "reset"]


@dataclass
class Place:
    """A worker behind a proxy, and a caller who has the server for himself."""

    proxy: TroubledProxy
    worker: Worker
    running: asyncio.Task[None]
    caller: QueueClient
    store: ArtifactStore

    async def serves(self) -> None:
        """Wait until a job is answered."""

        async def answered() -> bool:
            try:
                (pending,) = await self.caller.submit("a", ["text"], timeout_ms=2_000)
                return (await pending.result()).error is None
            except FmplexError:
                return False

        await until(answered, "a job is answered", SOON_S + 2 * LEASE_S)

    def lives(self) -> None:
        assert not self.running.done(), self.running.exception()

    async def leases(self) -> list[str]:
        return await self.caller.registry.live_workers(BACKBONE)


@pytest.fixture(scope="module")
def valkey() -> Any:
    with EmbeddedServer() as server:
        yield server


@asynccontextmanager
async def behind(
    server: EmbeddedServer, folder: Path, begin: Callable[[TroubledProxy], None] = lambda _: None
) -> AsyncIterator[Place]:
    """Run a worker behind a proxy, with whatever trouble `begin` makes; it must end when it is told to, and only then."""
    caller = QueueClient.connect(server.url)
    await caller.redis.flushall()
    store = ArtifactStore(str(folder))
    spec = WorkerSpec(lease_ms=round(LEASE_S * 1000))
    async with TroubledProxy(server.port) as proxy:
        begin(proxy)
        worker = Worker(proxy.url, BackboneSpec(name=BACKBONE, model="none"), spec, NoopEngine(), store)
        place = Place(proxy, worker, asyncio.create_task(worker.run()), caller, store)
        try:
            yield place
            place.lives()
        finally:
            proxy.trouble = "none"
            worker.stop()
            await asyncio.wait_for(place.running, 60)
            await caller.close()


async def deploy(place: Place) -> None:
    await asyncio.wait_for(place.worker.ready.wait(), 30)
    spec = VfmSpec(name="a", backbone=BACKBONE, head=Features())
    await Deployer(place.caller.registry, place.store).deploy(bare(spec))


@on_loops("uvloop")
@pytest.mark.parametrize("line", REFUSALS, ids=lambda line: line[:16])
async def test_a_worker_outlives_whatever_the_server_says(
    valkey: EmbeddedServer, tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    """From the start, and while it serves."""
    async with behind(valkey, tmp_path, lambda proxy: proxy.refuse(line)) as place:
        proxy = place.proxy
        await until(lambda: proxy.refused >= 3, "it tries again and again")
        place.lives()
        assert not place.worker.ready.is_set()
        said = [r for r in caplog.records if r.levelno >= logging.WARNING and "not ready" in r.getMessage()]
        assert len(said) == 1, "the cause is said once"
        proxy.trouble = "none"
        await deploy(place)
        await place.serves()
        proxy.refuse(line)
        await until(lambda: proxy.refused >= 20, "every task of it has met the refusal")
        place.lives()
        proxy.trouble = "none"
        await place.serves()


@on_loops("uvloop")
@pytest.mark.parametrize("trouble", UNREACHABLE)
async def test_a_worker_outlives_a_load_balancer_before_a_dead_server(
    valkey: EmbeddedServer, tmp_path: Path, trouble: Trouble
) -> None:
    """Connections are accepted and closed, at the start and, after all of them were cut, while it serves."""
    async with behind(valkey, tmp_path, lambda proxy: setattr(proxy, "trouble", trouble)) as place:
        proxy = place.proxy
        await until(lambda: proxy.accepted >= 4, "it tries again and again")
        place.lives()
        proxy.trouble = "none"
        await deploy(place)
        await place.serves()
        proxy.trouble = trouble
        await proxy.cut()
        before = proxy.accepted
        await until(lambda: proxy.accepted >= before + 20, "every task of it has met the trouble")
        place.lives()
        proxy.trouble = "none"
        await place.serves()


@on_loops("uvloop")
async def test_half_open_connections_cost_a_worker_no_lease(valkey: EmbeddedServer, tmp_path: Path) -> None:
    """All that it has stall for ever and nobody says so; new ones work."""
    async with behind(valkey, tmp_path) as place:
        await deploy(place)
        await place.serves()
        before = await place.leases()
        for _ in range(2):
            assert place.proxy.half_open() >= 2
            await place.serves()
        assert await place.leases() == before, "it is the same life"


@on_loops("uvloop")
async def test_a_stall_longer_than_a_lease_ends_in_a_new_life_or_the_old_one(
    valkey: EmbeddedServer, tmp_path: Path
) -> None:
    async with behind(valkey, tmp_path) as place:
        await deploy(place)
        await place.serves()
        place.proxy.trouble = "stall"
        await until(lambda: _none(place), "its lease has run out")
        place.lives()
        place.proxy.trouble = "none"
        await place.serves()


class OtherWeights(NoopEngine):
    """Hosts something else than its colleagues."""

    info = replace(NoopEngine.info, fingerprint=FINGERPRINT.model_copy(update={"weights": "others"}))


@on_loops("uvloop")
async def test_only_live_colleagues_that_host_something_else_end_a_worker(
    valkey: EmbeddedServer, tmp_path: Path
) -> None:
    async with behind(valkey, tmp_path) as place:
        await asyncio.wait_for(place.worker.ready.wait(), 30)
        backbone, spec = BackboneSpec(name=BACKBONE, model="none"), WorkerSpec(lease_ms=300)
        other = Worker(place.proxy.url, backbone, spec, OtherWeights(), place.store)
        with pytest.raises(Conflict, match="weights"):
            await asyncio.wait_for(other.run(), 30)


async def _none(place: Place) -> bool:
    return not await place.leases()


# --- callers ---


@on_both_loops
@pytest.mark.parametrize("line", REFUSALS, ids=lambda line: line[:16])
async def test_the_sdk_raises_errors_of_its_own(line: str) -> None:
    async with TroubledProxy() as proxy, AsyncClient(proxy.url, retries=0) as client:
        proxy.refuse(line)
        await _all_fail(client, _kind(line))


@on_both_loops
@pytest.mark.parametrize("trouble", UNREACHABLE)
async def test_the_sdk_says_that_the_broker_does_not_answer(trouble: Trouble) -> None:
    async with TroubledProxy() as proxy, AsyncClient(proxy.url, retries=0) as client:
        proxy.trouble = trouble
        await _all_fail(client, BrokerUnavailable)


def _kind(line: str) -> type[FmplexError]:
    if line.startswith("WRONGTYPE"):
        return BrokerFault
    return BrokerMisconfigured if line.startswith(("NOPERM", "MOVED", "ERR unknown")) else BrokerUnavailable


async def _all_fail(client: AsyncClient, kind: type[FmplexError]) -> None:
    for call in (
        lambda: client.infer("a", "text"),
        lambda: client.enqueue("a", "text"),
        lambda: client.vfms.list(),
        lambda: client.vfms.show("a"),
        lambda: client.vfms.update("a", weight=2),
        lambda: client.vfms.remove("a"),
    ):
        with pytest.raises(FmplexError) as caught:
            await call()
        assert type(caught.value) is kind


CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/vfms/a/infer", {"inputs": ["text"]}),
    ("POST", "/v1/vfms/a/infer", {"inputs": ["text"], "params": {"stream": True}}),
    ("POST", "/v1/embeddings", {"model": "a", "input": "text"}),
    ("POST", "/v1/chat/completions", {"model": "a", "messages": [{"role": "user", "content": "hi"}]}),
    ("POST", "/v1/chat/completions", {"model": "a", "messages": [{"role": "user", "content": "hi"}], "stream": True}),
    ("POST", "/v1/completions", {"model": "a", "prompt": "hi"}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/vfms", None),
    ("POST", "/v1/vfms", {"spec": {"name": "a", "backbone": BACKBONE, "head": {"kind": "embedding"}}}),
    ("GET", "/v1/vfms/a", None),
    ("PATCH", "/v1/vfms/a", {"weight": 2}),
    ("DELETE", "/v1/vfms/a", None),
    ("POST", "/v1/vfms/a/rollback", {}),
    ("GET", "/readyz", None),
]


@asynccontextmanager
async def gateway_on(proxy: TroubledProxy, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    store = ArtifactStore(str(folder))
    app = create_app(lambda: QueueClient.connect(proxy.url), GatewaySpec(), store, [BACKBONE])
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://g") as http:
        yield http


@on_both_loops
@pytest.mark.parametrize("line", REFUSALS[:-1], ids=lambda line: line[:16])
async def test_a_gateway_answers_503_and_the_cause(tmp_path: Path, line: str) -> None:
    async with TroubledProxy() as proxy, gateway_on(proxy, tmp_path) as http:
        proxy.refuse(line)
        await _all_503(http, _kind(line))


@on_both_loops
@pytest.mark.parametrize("trouble", UNREACHABLE)
async def test_a_gateway_whose_broker_is_away_answers_503_and_says_so_once(
    tmp_path: Path, trouble: Trouble, caplog: pytest.LogCaptureFixture
) -> None:
    async with TroubledProxy() as proxy:
        proxy.trouble = trouble
        async with gateway_on(proxy, tmp_path) as http:
            await _all_503(http, BrokerUnavailable)
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/metrics")).status_code == 200
    said = [r.getMessage() for r in caplog.records if r.name == "fmplex_gateway.broker_watch"]
    assert len(said) == 1
    assert "does not answer" in said[0]


async def _all_503(http: httpx.AsyncClient, kind: type[FmplexError]) -> None:
    for method, path, body in CALLS:
        reply = await http.request(method, path, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, kind.code), f"{method} {path}: {reply.text}"


@on_loops("uvloop")
async def test_half_open_connections_of_a_gateway_cost_no_call(valkey: EmbeddedServer, tmp_path: Path) -> None:
    """The worker has a way of its own; the gateway's stall. Its calls are repeated over new ones, replies found by their keys."""
    async with TroubledProxy(valkey.port) as proxy, behind(valkey, tmp_path / "store") as place:
        await deploy(place)
        async with gateway_on(proxy, tmp_path / "store") as http:

            async def ask() -> int:
                return (await http.post("/v1/vfms/a/infer", json={"inputs": ["text"]})).status_code

            assert await ask() == 200
            for _ in range(2):
                asking = [asyncio.create_task(ask()) for _ in range(4)]
                assert proxy.half_open() >= 2
                async with asyncio.timeout(SOON_S + 2 * LEASE_S):
                    assert await asyncio.gather(*asking, ask()) == [200] * 5


@pytest.mark.parametrize("role", ["fmplex_worker", "fmplex_gateway"])
def test_a_url_that_no_broker_can_have_ends_a_process_with_words(role: str, tmp_path: Path) -> None:
    """At once: before the model is loaded, which is not there."""
    config = write_fleet(tmp_path / "fleet.toml", {"name": "b", "model": "/nowhere"})
    for url, words in (("redis+sentinel://:secret@one,two/primary", "asks no Sentinel"), ("redis://h?x=1", "'x'")):
        command = [sys.executable, "-m", role, "--config", str(config), "--broker", url]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
        assert "secret" not in ended.stderr
