"""Connections and scripts: the settings that keep redis-py from doing harm, deadlines, and one way to call a script."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from redis import exceptions as redis_errors
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.broker_url import check_broker_url
from fmplex_broker.streams.refusals import FAILURES, as_ours

ANSWER_S = 2.0  # a server that takes longer for an answer is as good as away
BLOCK_MS = 2_000  # no blocking read waits longer: it is also how long a dead connection of one goes unnoticed
BLOCKED_S = BLOCK_MS / 1000 + 1.0
_BYTES_S = 4 << 20  # the slowest line that large arguments are given time for
_SETTINGS = {
    "protocol": 2, "decode_responses": False, "socket_timeout": None, "socket_connect_timeout": 5.0,
    "max_connections": 1024,  # a process; beyond them redis-py fails, so the many wait in line before that:
}  # fmt: skip
_SCRIPTS_AT_ONCE = 64
# Must run on a full server too, so that no lease lapses and it can drain: all that a job goes through once it is queued.
_ALLOW_OOM = frozenset(
    {"beat", "cancel", "claim", "join", "mark", "reap", "recover", "release", "retire", "settle"}
    | {f"batch_{word}" for word in ("cancel", "move", "record", "release", "renew", "take")}
    | {f"tune_{word}" for word in ("ask", "checked", "claim", "drop", "events", "save", "take")}
)
_SHARED = {"claim": "orders"}  # what a script needs beside the prelude
# Probes of idle connections, and how long what was sent may stay unconfirmed: a peer that is gone is noticed in six seconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPALIVE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 6_000}

Arg = str | bytes | int | float
# redis-py types every reply as a union over settings that we never change; here replies are bytes, lists and numbers.
Client: TypeAlias = Any


def open_redis(url: str) -> Client:
    """Return a client of the server at `url`. It connects on first use. Raises `InvalidInput` for a URL that no broker can have.

    Commands are never resent by the library: it cannot know which are safe to repeat, and a lost reply to an XADD would
    add twice. RESP2 on purpose: replies have one shape on every server (and on fakeredis). The library has no timeout of its
    own for an answer: every call has a deadline (`broker_errors`), and a connection on which one passed is dropped.
    """
    check_broker_url(url)
    try:
        options: dict[str, Any] = {**parse_url(url), **_SETTINGS, "retry": Retry(NoBackoff(), 0), "retry_on_error": []}
        kind = options.pop("connection_class", Connection)
        if issubclass(kind, Connection):  # over TCP
            options["socket_keepalive_options"] = {
                getattr(socket, name): n for name, n in _KEEPALIVE.items() if hasattr(socket, name)
            }
        pool = _Pool(type("Connection", (_PlainFailures, kind), {}), **options)
        # It does not connect: an option that redis-py does not know is found here, not at every call.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, redis_errors.RedisError) as e:
        raise InvalidInput(f"the broker's URL cannot be used: {e}; check what follows the '?'", field="broker") from e
    return _Redis.from_pool(pool)


class _Redis(Redis):
    """A client that can be closed whatever state its connections are in."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        with suppress(*FAILURES):
            await super().aclose(close_connection_pool)


class _Pool(ConnectionPool):
    """A pool that gives up its idle connections when one has failed: what broke that one has mostly broken them too, and each
    would cost another deadline until it is known."""

    async def release(self, connection: Any) -> None:
        await super().release(connection)
        if not connection.is_connected:
            idle, self._available_connections = self._available_connections, []
            for each in idle:
                await each.disconnect(nowait=True)


class _PlainFailures:
    """Mixin for connections that fail with redis-py's errors only, and are closed at once when they have failed."""

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        try:
            await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as e:  # uvloop's word for a transport that the other side has closed
            raise redis_errors.ConnectionError("the connection was closed") from e

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as e:
            raise redis_errors.ConnectionError("the connection was closed") from e
        except ValueError as e:  # an error line that redis-py cannot read
            raise redis_errors.InvalidResponse(str(e)) from e
        except redis_errors.ReadOnlyError:
            self.mark_for_reconnect()  # type: ignore[attr-defined]  # after a failover the name stands for another server
            raise

    async def disconnect(self, nowait: bool = False, **kwargs: Any) -> None:
        if nowait and self._writer is not None:  # type: ignore[attr-defined]
            # To close in order would mean to wait until all is sent: to a peer that does not read, for ever.
            self._writer.transport.abort()  # type: ignore[attr-defined]
        await super().disconnect(nowait, **kwargs)  # type: ignore[misc]


@asynccontextmanager
async def broker_errors(within_s: float | None = None) -> AsyncIterator[None]:
    """Bound in time what is asked of the broker, and turn whatever redis-py raises into errors of ours.

    Raises `BrokerUnavailable` when the server is away, full or refuses, or has not answered after `within_s` seconds, by default
    `ANSWER_S` (the connection is dropped: a late answer reaches nobody), `BrokerMisconfigured` when that will not pass by itself,
    and `BrokerFault` for a mistake in what was asked.
    """
    within_s = ANSWER_S if within_s is None else within_s
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError as e:
        raise as_ours(e if str(e) else TimeoutError(f"not within {within_s:.2g} s")) from e
    except FAILURES as e:
        raise as_ours(e) from e


@cache
def _source(name: str) -> str:
    lua = files("fmplex_broker.streams") / "lua"
    shared = "tunes" if name.startswith("tune_") else _SHARED.get(name)
    parts = ("prelude", *((shared,) if shared else ()), name)
    return "\n".join((lua / f"{part}.lua").read_text() for part in parts)


class Scripts:
    """Calls the protocol's scripts by name; loads them again after a server restart.

    `flags`: write the `#!lua` line (fakeredis does not know it).
    """

    def __init__(self, redis: Client, *, flags: bool = True) -> None:
        self._redis = redis
        self._flags = flags
        self._sha: dict[str, str] = {}
        self._slots = asyncio.Semaphore(_SCRIPTS_AT_ONCE)

    def _text(self, name: str) -> str:
        if self._flags and name in _ALLOW_OOM:
            return "#!lua flags=allow-oom\n" + _source(name)
        return _source(name)

    async def __call__(self, name: str, vfms_key: str, args: Sequence[Arg], *, within_s: float | None = None) -> Any:
        """Run script `name` on the backbone whose `vfms` key is given; it has `within_s` seconds, by default `ANSWER_S`, and time
        to send large arguments. Raises as `broker_errors` does."""
        sha = self._sha.get(name)
        if sha is None:
            sha = self._sha[name] = hashlib.sha1(self._text(name).encode(), usedforsecurity=False).hexdigest()
        within_s = (ANSWER_S if within_s is None else within_s) + sum(
            len(arg) for arg in args if isinstance(arg, bytes)
        ) / _BYTES_S
        async with self._slots, broker_errors(within_s):
            try:
                return await self._redis.evalsha(sha, 1, vfms_key, *args)
            except redis_errors.NoScriptError:
                # Nothing has run: sending the source runs it now and loads it for the next time.
                return await self._redis.eval(self._text(name), 1, vfms_key, *args)
