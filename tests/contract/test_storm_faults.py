"""The faults of `benchmarks.storm`: a real server refuses and real connections break, all of it passes, and the seed decides."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from benchmarks.storm_faults import KINDS, QUICK, Fault, Faults, schedule
from benchmarks.storm_server import Refusals
from benchmarks.storm_site import Site
from fmplex_broker.streams.embedded import EmbeddedServer
from tests.support.proxy import FaultProxy
from tests.support.waiting import until_soon

SCRIPT = "#!lua flags=allow-oom\nreturn redis.call('SET', 'b', 1)"


@asynccontextmanager
async def connected(port: int, timeout_s: float | None = None) -> AsyncIterator[aioredis.Redis]:
    redis = aioredis.Redis(port=port, protocol=2, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))
    yield redis
    await redis.aclose()


async def told(command: Awaitable[Any]) -> str:
    """What the server says, or that the connection broke."""
    try:
        return str(await command)
    except (redis_errors.ConnectionError, redis_errors.TimeoutError) as e:
        return f"{type(e).__name__}: {e}"
    except redis_errors.ResponseError as e:
        return str(e)


@pytest.mark.parametrize(
    ("kind", "write", "script"),
    [
        ("misconf", "MISCONF", "MISCONF"),
        ("noreplicas", "NOREPLICAS", "NOREPLICAS"),
        ("busy", "BUSY", "BUSY"),
        ("readonly", "read only", "read only"),
        ("maxclients", "ConnectionError", "ConnectionError"),
        ("maxmemory", "maxmemory", "OK"),
    ],
)
async def test_a_real_server_refuses_and_is_well_afterwards(
    crashable_server: EmbeddedServer, kind: str, write: str, script: str
) -> None:
    async with connected(crashable_server.port) as redis:
        assert await redis.set("a", 1)
        async with Refusals(crashable_server)(kind):
            assert write in await told(redis.set("a", 2))
            assert script in await told(redis.eval(SCRIPT, 0)), "a script that may run on a full server"
        await told(redis.ping())  # a connection that was lost is noticed by whoever uses it
        assert await redis.set("a", 3)
        assert await redis.get("a") == b"3"


@pytest.fixture
async def proxy(crashable_server: EmbeddedServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(crashable_server.port) as proxy:
        yield proxy


@pytest.fixture
def crashable_server(tmp_path: Path) -> Any:
    with EmbeddedServer(tmp_path / "broker") as server:
        yield server


@pytest.mark.parametrize(
    ("fault", "then"),
    [(FaultProxy.cut, "True"), (FaultProxy.reset_new, "ConnectionError"), (FaultProxy.refuse, "ConnectionError")],
    ids=["cut", "reset_new", "refuse"],
)
async def test_connections_that_break_are_noticed_at_once(
    proxy: FaultProxy, fault: Callable[[FaultProxy], None], then: str
) -> None:
    async with connected(proxy.port) as redis:
        assert await redis.set("a", 1)
        fault(proxy)
        assert "ConnectionError" in await told(redis.set("a", 2))
        assert then in await told(redis.set("a", 3))
        proxy.listen()
        assert await redis.set("a", 4)
        assert proxy.open_lines == 1


async def test_what_is_stalled_comes_later(proxy: FaultProxy) -> None:
    async with connected(proxy.port) as redis, connected(proxy.port) as new:
        assert await redis.set("a", 1)
        proxy.stall()
        waiting = [asyncio.create_task(told(each.get("a"))) for each in (redis, new)]
        done, _ = await asyncio.wait(waiting, timeout=0.2)
        assert not done
        proxy.resume()
        assert await asyncio.gather(*waiting) == ["b'1'", "b'1'"]


async def test_a_half_open_connection_is_silent_and_new_ones_work(proxy: FaultProxy) -> None:
    async with connected(proxy.port, timeout_s=0.2) as redis, connected(proxy.port) as new:
        assert await redis.set("a", 1)
        proxy.silence()
        assert "TimeoutError" in await told(redis.set("a", 2))
        assert await new.get("a") == b"1"
        assert await redis.set("a", 3), "over another connection"
        await until_soon(lambda: proxy.open_lines == 2, "the proxy lets go what the process has given up")


@pytest.mark.parametrize("turns", range(5))
async def test_a_port_that_closes_while_connections_come_leaves_no_socket_open(proxy: FaultProxy, turns: int) -> None:
    """asyncio's own server drops what it has accepted in the turn of the loop in which it closes."""
    clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(10)]
    for _ in range(turns):
        await asyncio.sleep(0)
    proxy.refuse()
    for client in clients:
        client.settimeout(5)
        with suppress(ConnectionResetError):
            assert await asyncio.to_thread(client.recv, 1) == b""
        client.close()
    await until_soon(lambda: proxy.open_lines == 0)
    with warnings.catch_warnings(record=True) as caught:
        gc.collect()
    assert not caught


# ---- the schedule ----


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site of which nothing runs."""
    return Site(tmp_path, {"name": "tiny", "model": "none"}, workers=3, gateways=2)


@pytest.mark.parametrize("seed", [1, 2, 8])
def test_every_kind_comes_twice_in_the_order_of_the_seed(site: Site, seed: int) -> None:
    drawn = schedule(seed, list(KINDS), site, times=2)
    assert drawn == schedule(seed, list(KINDS), site, times=2)
    assert drawn != schedule(seed + 1, list(KINDS), site, times=2)
    assert sorted(fault.kind for fault in drawn) == sorted([*KINDS, *KINDS])
    for kind, expected in KINDS.items():
        victims = [fault.on for fault in drawn if fault.kind == kind]
        if expected.place == "connections":
            assert victims[0] in site.workers, "a worker"
            assert victims[1] not in site.workers, "and a caller"
        elif expected.place != "server":
            assert len(set(victims)) == 2, "not the same process again"
    assert all(KINDS[f.kind].lasts[0] <= f.seconds <= KINDS[f.kind].lasts[1] for f in drawn)


def test_the_kinds_are_those_that_are_promised() -> None:
    assert set(QUICK) <= set(KINDS)
    assert {"misconf", "noreplicas", "busy", "readonly", "maxclients", "maxmemory"} <= set(KINDS)
    assert {f"{role}_{how}" for role in ("worker", "gateway") for how in ("sigkill", "sigterm")} <= set(KINDS)
    assert {kind for kind in KINDS if Fault(kind, "x", 0).ends_process} == {
        "worker_sigkill", "worker_sigterm", "gateway_sigkill", "gateway_sigterm",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["server_restart", "server_away"])
async def test_the_server_goes_and_comes_back_with_its_data(site: Site, kind: str) -> None:
    async with AsyncExitStack() as stack:
        stack.callback(site.server.stop)
        await asyncio.to_thread(site.server.start)
        for each in site.proxies.values():
            await stack.enter_async_context(each)
        redis = await stack.enter_async_context(connected(site.proxies["sdk"].port))
        assert await redis.set("a", 1)
        async with Faults(site)(Fault(kind, "server", 1.0)):
            said = [await told(redis.get("a")) for _ in range(2)]
            assert all("ConnectionError" in one for one in said), said
            assert ("refused" in said[1] or "Connect call failed" in said[1]) == (kind == "server_away")
        assert await redis.get("a") == b"1"
