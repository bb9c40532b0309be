"""Connections and scripts: the settings that keep redis-py from doing harm, and one way to call a script."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fmplex_broker.errors import BrokerUnavailable

BLOCK_MS = 5_000  # no blocking read waits longer, and no socket waits shorter
_SOCKET_TIMEOUT_S = 15.0
_CONNECTIONS = 1024  # a process; beyond them redis-py fails, so the many wait in line before that:
_SCRIPTS_AT_ONCE = 64
# Must run on a full server too, so that no lease lapses and it can drain: all that a job goes through once it is queued.
_ALLOW_OOM = frozenset({"beat", "cancel", "claim", "join", "mark", "reap", "recover", "release", "retire", "settle"})
# States of a server that pass. Those without a class of their own: no disk to write to, too few replicas, a script hogs it.
_REFUSALS = (redis_errors.ReadOnlyError, redis_errors.ClusterDownError, redis_errors.TryAgainError)
_REFUSAL_CODES = ("MISCONF", "NOREPLICAS", "BUSY ", "UNBLOCKED", "MASTERDOWN")

Arg = str | bytes | int | float
# redis-py types every reply as a union over settings that we never change; here replies are bytes, lists and numbers.
Client: TypeAlias = Any


def open_redis(url: str) -> Client:
    """Return a client of the server at `url`. It connects on first use.

    Commands are never resent by the library: it cannot know which are safe to repeat, and a lost reply to an XADD would
    add twice. RESP2 on purpose: replies have one shape on every server (and on fakeredis).
    """
    pool = ConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        protocol=2,
        decode_responses=False,
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=5.0,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
    )
    pool.connection_class = type("Connection", (_CancellableConnection, pool.connection_class), {})
    return Redis.from_pool(pool)


class _CancellableConnection:
    """Mixin for connections whose sending can be cancelled: redis-py sends with `asyncio.wait_for`, which up to Python 3.11
    forgets a cancellation that comes just as the sending ends, and a task asked to end would go on for ever."""

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        await super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]  # the answer must not reach the next command
            raise asyncio.CancelledError


@asynccontextmanager
async def broker_errors() -> AsyncIterator[None]:
    """Turn whatever redis-py raises when the server is away, full or refuses us into `BrokerUnavailable`."""
    try:
        yield
    except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError) as e:
        raise BrokerUnavailable(f"the broker does not answer ({e}); is it running, and is its URL right?") from e
    except redis_errors.OutOfMemoryError as e:
        raise BrokerUnavailable("the broker is out of memory; jobs are taken again once it has drained") from e
    except redis_errors.ResponseError as e:
        if not isinstance(e, _REFUSALS) and not str(e).startswith(_REFUSAL_CODES):
            raise  # a mistake of ours, not a state of the server
        raise BrokerUnavailable(f"the broker refused: {e}") from e


@cache
def _source(name: str) -> str:
    lua = files("fmplex_broker.streams") / "lua"
    parts = ("prelude", "orders", "claim") if name == "claim" else ("prelude", name)
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

    async def __call__(self, name: str, vfms_key: str, args: Sequence[Arg]) -> Any:
        """Run script `name` on the backbone whose `vfms` key is given. Raises `BrokerUnavailable`."""
        sha = self._sha.get(name)
        if sha is None:
            sha = self._sha[name] = hashlib.sha1(self._text(name).encode(), usedforsecurity=False).hexdigest()
        async with self._slots, broker_errors():
            try:
                return await self._redis.evalsha(sha, 1, vfms_key, *args)
            except redis_errors.NoScriptError:
                # Nothing has run: sending the source runs it now and loads it for the next time.
                return await self._redis.eval(self._text(name), 1, vfms_key, *args)
