"""Every call has a deadline; a connection on which one passed is dropped, and those beside it; none leads nowhere for ever."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams import connection as under_test
from fmplex_broker.streams.connection import ANSWER_S, BLOCKED_S, Scripts, broker_errors, open_redis
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.embedded import EmbeddedServer
from tests.contract.harness import BACKBONE, Bench, job
from tests.support.loops import on_both_loops
from tests.support.troubled_proxy import TroubledProxy
from tests.support.waiting import until_soon


@pytest.fixture
async def proxy(valkey: EmbeddedServer) -> AsyncIterator[TroubledProxy]:
    async with TroubledProxy(valkey.port) as proxy:
        yield proxy


async def test_a_late_answer_reaches_nobody(proxy: TroubledProxy) -> None:
    redis = open_redis(proxy.url)
    assert await redis.echo("one") == b"one"
    proxy.trouble = "stall"
    with pytest.raises(BrokerUnavailable, match=r"not within 0\.2 s"):
        async with broker_errors(0.2):
            await redis.echo("two")
    proxy.trouble = "none"
    for words in ("three", "four"):
        assert await redis.echo(words) == words.encode()
    await redis.aclose()


async def test_what_is_cut_off_by_a_deadline_is_no_cancellation(proxy: TroubledProxy) -> None:
    """And a cancellation is no deadline: whoever is asked to end ends."""
    redis = open_redis(proxy.url)
    proxy.trouble = "stall"

    async def ask() -> None:
        async with broker_errors():
            await redis.ping()

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    proxy.trouble = "none"
    assert await redis.ping()
    await redis.aclose()


async def test_half_open_connections_cost_one_deadline_together(proxy: TroubledProxy) -> None:
    redis = open_redis(proxy.url)
    await asyncio.gather(*(redis.ping() for _ in range(8)))
    assert proxy.half_open() == 8
    with pytest.raises(BrokerUnavailable):
        async with broker_errors(0.2):
            await redis.ping()
    async with broker_errors(0.2):
        assert await redis.ping()
    await redis.aclose()


@pytest.mark.parametrize(("lease_ms", "within"), [(3000, "1 s"), (1_200, "0.6 s"), (60_000, "2 s")])
async def test_a_beat_is_given_up_while_there_is_time_for_another(
    proxy: TroubledProxy, lease_ms: int, within: str
) -> None:
    redis = open_redis(proxy.url)
    consumer = Consumer(redis, Scripts(redis), BACKBONE, "w1", lease_ms=lease_ms)
    proxy.trouble = "stall"
    for call in (consumer.beat(), consumer.reap(0, max_attempts=1)):
        with pytest.raises(BrokerUnavailable, match=f"not within {within}"):
            await call
    await redis.aclose()


async def test_a_blocking_read_is_given_more_time(proxy: TroubledProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmplex_broker.streams.consumer.BLOCKED_S", 0.3)
    redis = open_redis(proxy.url)
    proxy.trouble = "stall"
    with pytest.raises(BrokerUnavailable, match=r"not within 0\.3 s"):
        await Consumer(redis, Scripts(redis), BACKBONE, "w1", lease_ms=3000).listen()
    await redis.aclose()
    assert BLOCKED_S > under_test.BLOCK_MS / 1000


async def test_large_arguments_are_given_time_to_travel(real: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def noting(within_s: float) -> Any:
        given.append(within_s)
        return broker_errors(within_s)

    await real.serve("a")
    monkeypatch.setattr(under_test, "broker_errors", noting)
    await real.enqueue(job())
    await real.enqueue(job(payload=b"x" * (16 << 20)))
    assert given == [pytest.approx(ANSWER_S, abs=0.01), pytest.approx(ANSWER_S + 4, abs=0.01)]


async def test_a_peer_that_does_not_read_costs_no_descriptor() -> None:
    """To close in order would mean to wait until it does."""
    held: list[asyncio.StreamWriter] = []

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        for _ in range(2):  # what redis-py says when it connects
            await reader.readuntil(b"SETINFO")
            writer.write(b"+OK\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    async with await asyncio.start_server(deaf, "127.0.0.1", 0) as server:
        redis = open_redis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        descriptors = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
        before = len(os.listdir(descriptors))  # noqa: PTH208
        for _ in range(5):
            with pytest.raises(BrokerUnavailable):
                async with broker_errors(0.2):
                    await redis.set("key", b"x" * (32 << 20))
        held_here = len(held)
        await until_soon(lambda: len(os.listdir(descriptors)) <= before + held_here)  # noqa: PTH208
        await redis.aclose()
        for writer in held:
            writer.transport.abort()


@on_both_loops
async def test_the_system_too_looks_after_connections(valkey: EmbeddedServer) -> None:
    redis = open_redis(valkey.url)
    await redis.ping()
    (idle,) = redis.connection_pool._available_connections
    sock = idle._writer.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    for name, value in under_test._KEEPALIVE.items():
        if hasattr(socket, name):
            assert sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value, name
    await redis.aclose()


async def test_a_connection_to_a_replica_is_made_anew() -> None:
    """After a failover the same name stands for another server."""
    async with TroubledProxy() as server:
        redis = open_redis(server.url)
        server.refuse("READONLY You can't write against a read only replica.")
        for connections in (1, 2, 3):
            with pytest.raises(BrokerUnavailable, match="after a failover that passes"):
                async with broker_errors():
                    await redis.set("a", 1)
            assert server.accepted == connections
        await redis.aclose()


async def test_a_client_closes_whatever_its_connections_do(proxy: TroubledProxy) -> None:
    redis = open_redis(proxy.url)
    await asyncio.gather(*(redis.ping() for _ in range(3)))
    proxy.trouble = "stall"
    await asyncio.wait_for(redis.aclose(), 5)
