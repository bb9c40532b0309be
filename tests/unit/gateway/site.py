"""The gateway's application on a broker in memory: what it answers without a worker that runs anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakeredis import FakeAsyncRedis, FakeServer
from fastapi import FastAPI

from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.specs.gateway import GatewaySpec
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.connection import Scripts
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.keys import REGISTRY_VFMS, Keys
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.app import create_app
from fmplex_gateway.batches import feeder, feeding, parts
from tests.support.hosting import HOSTED, on_hosted

BACKBONE = "minilm"
EMBEDDING: dict[str, Any] = {"head": {"kind": "embedding"}}


def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let feeders of batches look, and write rows down, ten times as often: the tests wait for that, and it is the same."""
    monkeypatch.setattr(feeder, "_EVERY_S", 0.1)
    monkeypatch.setattr(feeding, "_LOOK_S", 0.1)
    monkeypatch.setattr(parts, "_LEAST_AGE_S", 0.2)


def spec(name: str, **parts: Any) -> VfmSpec:
    """Make the spec of a vFM without files, by default an embedding."""
    return parse(VfmSpec, {"name": name, "backbone": BACKBONE, **(parts or EMBEDDING)})


class Site:
    """The application, an HTTP client of it (`http`), and a hand in its broker."""

    def __init__(self, app: FastAPI, http: httpx.AsyncClient, queue: QueueClient) -> None:
        self.app = app
        self.http = http
        self.queue = queue

    async def worker(self, name: str = "w1", backbone: str = BACKBONE, lease_ms: int = 60_000) -> Consumer:
        """Let a worker live that does nothing."""
        await self.queue.registry.register_backbone(
            BackboneInfo(name=backbone, model="m", hidden=4, max_tokens=64, generates=True)
        )
        consumer = Consumer(self.queue.redis, self.queue.scripts, backbone, name, lease_ms=lease_ms)
        assert (await consumer.join(HOSTED)).alive
        return consumer

    async def serve(self, *specs: VfmSpec) -> None:
        """Make vFMs serve: offered, and accepted by a worker that comes and goes for it."""
        setup = await self.worker("setup")
        vfms, scripts = Keys(BACKBONE).vfms, self.queue.scripts
        for one in specs:
            version = on_hosted(bare(one).digest)
            await self.queue.redis.hset(REGISTRY_VFMS, one.name, BACKBONE)
            terms = [one.limits.max_pending, one.weight, 0, 0, *one.slo.targets]
            state, _ = await scripts("propose", vfms, [one.name, version, one.model_dump_json(), -1, *terms])
            assert state == b"ok"
            assert await self.queue.registry.vote(BACKBONE, one.name, version, "setup") == "serving"
        await setup.leave()

    async def ask(self, method: str, path: str, key: str | None = None, body: Any = None) -> httpx.Response:
        """Send one request, with a key if one is given."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return await self.http.request(method, path, headers=headers, json=body)


@asynccontextmanager
async def site(
    folder: Path, gateway: Mapping[str, Any] | None = None, backbones: Sequence[str] = (BACKBONE,)
) -> AsyncIterator[Site]:
    """Run the application. `gateway`: that table of a fleet file, `backbones`: what the file names; `folder`: for artifacts."""
    redis = FakeAsyncRedis(server=FakeServer(), protocol=2)
    queue = QueueClient(redis, scripts=Scripts(redis, flags=False), spec_ttl_s=0)
    app = create_app(lambda: queue, parse(GatewaySpec, gateway or {}), ArtifactStore(str(folder / "store")), backbones)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as http,
    ):
        yield Site(app, http, queue)
