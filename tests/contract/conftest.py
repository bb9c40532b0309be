"""Every contract test runs on fakeredis and on a real server, and ends with a look for keys that would stay for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio as aioredis
from fakeredis import FakeAsyncRedis, FakeServer

from fmplex_broker.streams import connection
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from tests.contract.harness import Bench
from tests.support.broker import keys_without_ttl


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(params=["fakeredis", "valkey"])
async def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    if request.param == "valkey":
        url = request.getfixturevalue("valkey").url
        redis: aioredis.Redis = open_redis(url)
        await redis.flushall()
        bench = Bench(redis, Scripts(redis))
    else:
        monkeypatch.setattr(
            connection, "ANSWER_S", 60.0
        )  # it holds the loop while it computes, and a busy machine is slow
        redis = FakeAsyncRedis(server=FakeServer(), protocol=2)
        bench = Bench(redis, Scripts(redis, flags=False))
    yield bench
    assert await keys_without_ttl(redis) == []
    await redis.aclose()


@pytest.fixture
async def session(bench: Bench) -> AsyncIterator[QueueClient]:
    """A caller, who looks vFMs up anew at every call."""
    session = QueueClient(bench.redis, scripts=bench.scripts, spec_ttl_s=0)
    yield session
    await session.close()


@pytest.fixture
async def other(bench: Bench) -> AsyncIterator[QueueClient]:
    """A second one."""
    session = QueueClient(bench.redis, scripts=bench.scripts, spec_ttl_s=0)
    yield session
    await session.close()


@pytest.fixture
async def real(valkey: EmbeddedServer) -> AsyncIterator[Bench]:
    """A bench on the real server only: for what fakeredis cannot do."""
    redis = open_redis(valkey.url)
    await redis.flushall()
    yield Bench(redis, Scripts(redis))
    assert await keys_without_ttl(redis) == []
    await redis.aclose()


@pytest.fixture
async def crashable() -> AsyncIterator[tuple[EmbeddedServer, Bench]]:
    """A server of its own, to be killed. `appendfsync always`: what was answered is on disk."""
    with EmbeddedServer() as server:
        redis = open_redis(server.url)
        await redis.config_set("appendfsync", "always")
        yield server, Bench(redis, Scripts(redis))
        assert await keys_without_ttl(redis) == []
        await redis.aclose()
