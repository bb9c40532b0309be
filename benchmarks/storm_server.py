"""States of a server in which it refuses, brought about for real: on a valkey-server, by an administrator's means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fmplex_broker.streams.connection import Client
from fmplex_broker.streams.embedded import EmbeddedServer

_POLL_S = 0.01
_PATIENCE_S = 10.0
_NOBODY = 1  # a port on which nobody listens


def administrator(server: EmbeddedServer) -> Client:
    """Connect to a server past all proxies, over one connection that is kept, so that it works when no new one is let in."""
    return Redis(
        port=server.port, protocol=2, single_connection_client=True, socket_timeout=None, retry=Retry(NoBackoff(), 0)
    )


class Refusals:
    """The refusals of one server, by name: each is an async context manager, at whose end the server is well again.

    `misconf`: its disk takes no snapshot. `noreplicas`: it has fewer replicas than it wants. `busy`: a script hogs it.
    `readonly`: it has been made a replica. `maxclients`: all connections are lost and no new one is let in. `maxmemory`: it is
    full.
    """

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        kinds = (self.misconf, self.noreplicas, self.busy, self.readonly, self.maxclients, self.maxmemory)
        self._kinds = {kind.__name__: kind for kind in kinds}

    def __call__(self, kind: str) -> AbstractAsyncContextManager[None]:
        """Return the refusal of that name."""
        return self._kinds[kind]()

    @asynccontextmanager
    async def misconf(self) -> AsyncIterator[None]:
        """Refuse writes since the last snapshot failed: a folder stands where its file would be, which stops root too."""
        obstacle = self._server.folder / "dump.rdb"
        obstacle.mkdir()
        async with administrator(self._server) as admin:
            try:
                await admin.config_set("save", "3600 1000000000")
                await admin.bgsave()
                await _until_failed(admin)
                yield
            finally:
                await admin.config_set("save", "")  # who wants no snapshots is not stopped by one that failed
                obstacle.rmdir()

    @asynccontextmanager
    async def noreplicas(self) -> AsyncIterator[None]:
        """Refuse writes for want of a replica."""
        async with self._setting("min-replicas-to-write", 1):
            yield

    @asynccontextmanager
    async def maxmemory(self) -> AsyncIterator[None]:
        """Refuse what needs memory."""
        async with self._setting("maxmemory", 1):
            yield

    @asynccontextmanager
    async def maxclients(self) -> AsyncIterator[None]:
        """End every connection but the administrator's, which leaves no room for another."""
        async with self._setting("maxclients", 1) as admin:
            await admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            yield

    @asynccontextmanager
    async def readonly(self) -> AsyncIterator[None]:
        """Make it the replica of a host that is away: it keeps its data, serves reads and refuses writes."""
        async with administrator(self._server) as admin:
            await admin.execute_command("REPLICAOF", "127.0.0.1", _NOBODY)
            try:
                yield
            finally:
                await admin.execute_command("REPLICAOF", "NO", "ONE")

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Run a script without end, which is killed in the end; it has written nothing."""
        async with self._setting("busy-reply-threshold", 10) as admin, administrator(self._server) as hog:
            running = asyncio.create_task(_run_for_ever(hog))
            try:
                await _until_busy(admin)
                yield
            finally:
                await admin.execute_command("SCRIPT", "KILL")
                await running

    @asynccontextmanager
    async def _setting(self, name: str, value: int) -> AsyncIterator[Client]:
        async with administrator(self._server) as admin:
            usual = (await admin.config_get(name))[name]
            await admin.config_set(name, value)
            try:
                yield admin
            finally:
                await admin.config_set(name, usual)


async def _run_for_ever(hog: Client) -> None:
    try:
        await hog.execute_command("EVAL", "while true do end", 0)
    except redis_errors.ResponseError as e:
        if "SCRIPT KILL" not in str(e):
            raise


async def _until_busy(admin: Client) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            try:
                await admin.ping()
            except redis_errors.ResponseError:
                return
            await asyncio.sleep(_POLL_S)


async def _until_failed(admin: Client) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            if (await admin.info("persistence"))["rdb_last_bgsave_status"] == "err":
                return
            await asyncio.sleep(_POLL_S)
