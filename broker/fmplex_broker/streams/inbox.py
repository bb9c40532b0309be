"""The reply inbox of one client on one backbone: futures by job id, one reader, and healing for what got lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

from fmplex_broker.errors import FmplexError
from fmplex_broker.streams.connection import BLOCK_MS, BLOCKED_S, Client, broker_errors
from fmplex_broker.streams.keys import Keys
from fmplex_broker.streams.outages import Outage
from fmplex_broker.streams.stream_buffer import StreamBuffer
from fmplex_broker.wire.messages import Reply, read_reply

log = logging.getLogger(__name__)
HEAL_EVERY_S = 1.0
_BACKOFF_S = 0.2


class _Waiter(NamedTuple):
    reply: asyncio.Future[Reply]
    since: float
    buffer: StreamBuffer | None


class Inbox:
    """Resolves the future of each expected job when its reply arrives, and hands on its chunks until then. `client`: names the
    inbox; `results`: looks up the stored replies of jobs.

    A reply may be missed (server restart, trimmed stream): the stored result is looked up for whoever has waited longer than
    `HEAL_EVERY_S`, so a lost message costs time, never an answer.
    """

    def __init__(
        self, redis: Client, backbone: str, client: str, results: Callable[[list[str]], Awaitable[list[Reply | None]]]
    ):
        self._redis = redis
        self._key = Keys(backbone).inbox(client)
        self._results = results
        self._waiting: dict[str, list[_Waiter]] = {}
        self._attempts: dict[str, str] = {}  # jobs that are waited for -> who has asked for them last, if not the first
        self._tasks: list[asyncio.Task[None]] = []
        self._last = "0-0"

    def expect(self, job: str, buffer: StreamBuffer | None = None) -> asyncio.Future[Reply]:
        """Return the future of a job's reply; `buffer` is fed its chunks until then. Call before enqueueing, so that nothing can
        come too early."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._heal())]
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        # Two callers of one process may wait for one job: they used the same idempotency key.
        self._waiting.setdefault(job, []).append(_Waiter(future, time.monotonic(), buffer))
        return future

    def note_attempt(self, job: str, attempt: str) -> None:
        """Note that a job which was there already has been asked for again, by another `NewJob`."""
        if job in self._waiting:
            self._attempts[job] = attempt

    def attempt(self, job: str) -> str:
        """Return the id of the `NewJob` that has asked for a job last, as far as it is known here."""
        return self._attempts.get(job, job)

    def forget(self, job: str, future: asyncio.Future[Reply] | None = None) -> bool:
        """Cancel the futures of a job; with `future`, only that one. True if others here still wait."""
        waiting = self._waiting.pop(job, [])
        others = [w for w in waiting if future is not None and w.reply is not future]
        if others:
            self._waiting[job] = others
        else:
            self._attempts.pop(job, None)
        for left in waiting:
            if future is None or left.reply is future:
                left.reply.cancel()
        return bool(others)

    async def close(self) -> None:
        """End the reader, cancel every expected future and delete the inbox."""
        while running := [task for task in self._tasks if not task.done()]:
            for task in running:
                task.cancel()
            # Again, should a client library have swallowed it (asyncio.wait_for did, up to Python 3.11).
            await asyncio.wait(running, timeout=0.1)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in list(self._waiting):
            self.forget(job)
        with suppress(FmplexError):
            async with broker_errors():
                await self._redis.delete(self._key)

    def _resolve(self, job: str, reply: Reply) -> None:
        self._attempts.pop(job, None)
        for waiting in self._waiting.pop(job, []):
            if not waiting.reply.done():
                waiting.reply.set_result(reply)

    async def _read(self) -> None:
        outage = Outage(log, "reading replies")
        while True:
            try:
                async with broker_errors(BLOCKED_S):
                    got: Any = await self._redis.xread({self._key: self._last}, block=BLOCK_MS, count=512)
                for _, entries in got or []:
                    self._last = entries[-1][0].decode()
                    await self._deliver([fields for _, fields in entries])
                    async with broker_errors():
                        await self._redis.xtrim(self._key, minid=self._last, approximate=False)
                outage.over()
            except FmplexError as e:
                outage.say(e)
                await asyncio.sleep(_BACKOFF_S)
            except Exception:  # whatever it was, the replies to come must still be read
                log.exception("reading the inbox failed; trying again")
                await asyncio.sleep(HEAL_EVERY_S)

    async def _deliver(self, messages: list[dict[bytes, bytes]]) -> None:
        by_key = []
        for fields in messages:
            job = fields[b"j"].decode()
            body, chunk = fields.get(b"r"), fields.get(b"p")
            if chunk is not None:
                for waiting in self._waiting.get(job, []):
                    if waiting.buffer is not None:
                        waiting.buffer.feed(chunk)
            elif body:
                self._resolve(job, read_reply(body))
            elif body is not None:  # too large to travel in the stream
                by_key.append(job)
        await self.look_up(by_key)

    async def look_up(self, jobs: list[str]) -> None:
        """Resolve the jobs whose result is stored already. Raises `BrokerUnavailable`."""
        for job, reply in zip(jobs, await self._results(jobs), strict=True):
            if reply is not None:
                self._resolve(job, reply)

    async def _heal(self) -> None:
        while True:
            await asyncio.sleep(HEAL_EVERY_S)
            old = time.monotonic() - HEAL_EVERY_S
            late = [job for job, waiting in self._waiting.items() if waiting[0].since < old]
            for start in range(0, len(late), 512):
                try:
                    await self.look_up(late[start : start + 512])
                except FmplexError:  # the reader says why
                    break
                except Exception:
                    log.exception("looking for late replies failed; trying again")
