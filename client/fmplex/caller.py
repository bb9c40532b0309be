"""Sending calls, and sending them again where that cannot run a job twice: what both clients are made of."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from itertools import count
from typing import TypeVar
from weakref import WeakSet

from fmplex.batches.calls import BatchCalls
from fmplex.call import Call, Deadline
from fmplex.homes import Home, keep_in_forks
from fmplex.results import AsyncHandle, AsyncTextStream, Result
from fmplex.transport import Transport, open_transport
from fmplex.tunes.calls import TuneCalls
from fmplex_broker.errors import Busy, DeadlineExceeded, InvalidInput, Unavailable, VfmClosed

T = TypeVar("T")
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 5.0


class Caller:
    """Sends calls over the transport to `url`, at most 1 + `retries` times each; `api_key` and `artifacts` as `open_transport`
    takes them.

    A call carries an idempotency key, so that it does not run twice. Full queues and rate limits are waited out as the fleet
    asks, within the same number of tries and the call's time. Raises `InvalidInput` for a URL that is none, or other tries.

    It belongs to the event loop of its first call. Once that is closed, or in a process that was forked since, the transport is
    opened again; in a second loop beside it calls raise `InvalidInput`. `ends_with_loop`: connections are closed at the end of
    `asyncio.run`.
    """

    def __init__(
        self, url: str, api_key: str | None, artifacts: str | None, retries: int, *, ends_with_loop: bool = False
    ) -> None:
        if type(retries) is not int or retries < 0:
            raise InvalidInput(f"retries must be a whole number from 0 on, not {retries!r}", field="retries")
        self._open_transport: Callable[[], Transport] = lambda: open_transport(url, api_key, artifacts)
        self._retries = retries
        self._ends_with_loop = ends_with_loop
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._transport = self._open_transport()
        self._home = Home()
        self._streams: WeakSet[AsyncTextStream] = WeakSet()
        self._end: AsyncGenerator[None, None] | None = None
        keep_in_forks(self._transport)

    def transport(self) -> Transport:
        """Return the transport of the running event loop. Raises `Unavailable` once it is closed, `InvalidInput` where
        another loop has it."""
        if self._closed:
            raise Unavailable("this client is closed; make a new one")
        match self._home.look():
            case "forked" | "ended":
                self._open()
                self._home.look()
            case "elsewhere":
                raise InvalidInput("this client is in use in another event loop; make one for each loop")
        if self._ends_with_loop and self._end is None:
            self._end = _closing(self._transport)
            keep_in_forks(self._end)
            with suppress(StopIteration):
                self._end.asend(None).send(
                    None
                )  # begun, so that the loop knows it: it closes what it knows when it ends
        return self._transport

    async def infer(self, call: Call, *, patient: bool = True) -> list[Result]:
        """Run a call; return the results of its inputs in their order. Raises the first typed error among them. `patient`: wait
        out full queues and rate limits."""
        _refuse_stream(call)
        return await self._retry(call, lambda transport, rest: transport.infer(rest), patient=patient)

    async def enqueue(self, call: Call) -> AsyncHandle:
        """Enqueue the only input of a call and return without waiting for its result."""
        _refuse_stream(call)
        return await self._retry(call, lambda transport, rest: transport.enqueue(rest))

    def stream(self, call: Call) -> AsyncTextStream:
        """Generate a text for the only input of a call. The call is repeated only before the first piece."""
        stream = AsyncTextStream(self._pieces(call))
        self._streams.add(stream)
        return stream

    async def _pieces(self, call: Call) -> AsyncGenerator[str | Result, None]:
        deadline = Deadline(call)
        for attempt in count():
            begun, transport = False, self.transport()
            try:
                async with aclosing(transport.stream(deadline.rest())) as pieces:
                    while (piece := await _in_time(pieces, deadline)) is not None:
                        begun = True
                        yield piece
                return
            except (Unavailable, Busy) as e:
                if begun:
                    raise
                await self._wait_out(e, attempt, deadline.left_s())

    async def repeat(self, send: Callable[[Transport], Awaitable[T]]) -> T:
        """Do what may be done twice; return what comes of it."""
        for attempt in count():
            transport = self.transport()
            try:
                return await send(transport)
            except (Unavailable, Busy) as e:
                await self._wait_out(e, attempt, math.inf)
        raise AssertionError("unreachable")

    async def ask_batches(self, send: Callable[[BatchCalls], Awaitable[T]]) -> T:
        """Ask for something about files or batches that may be asked for twice; see `Ask`. Raises `InvalidInput` where there
        is no gateway."""
        return await self.repeat(lambda transport: send(transport.batch_calls()))

    async def ask_tunes(self, send: Callable[[TuneCalls], Awaitable[T]]) -> T:
        """Ask for something about tuning jobs that may be asked for twice; see `Ask`. Raises `InvalidInput` where there is no
        gateway."""
        return await self.repeat(lambda transport: send(transport.tune_calls()))

    async def _retry(self, call: Call, send: Callable[[Transport, Call], Awaitable[T]], *, patient: bool = True) -> T:
        deadline = Deadline(call)
        for attempt in count():
            transport = self.transport()
            try:
                return await send(transport, deadline.rest())
            except (Unavailable, Busy) as e:
                if isinstance(e, Busy) and not patient:
                    raise
                await self._wait_out(e, attempt, deadline.left_s())
        raise AssertionError("unreachable")

    async def _wait_out(self, e: Unavailable | Busy, attempt: int, left_s: float) -> None:
        """Wait until the next attempt; raise the error if there is none, or no time for it in `left_s` seconds."""
        if not left_s:
            raise DeadlineExceeded(f"the call's time is over; its last try: {e.message}") from e
        pause_s = e.retry_after or min(_BACKOFF_S * 2**attempt, _LONGEST_BACKOFF_S)
        if attempt == self._retries or isinstance(e, VfmClosed) or pause_s >= left_s:
            raise e
        await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """End the texts that are being read, and close all connections. Raises `InvalidInput` where another loop has them."""
        if self._closed:
            return
        match self._home.look():
            case "elsewhere":
                raise InvalidInput("this client is in use in another event loop; close it there")
            case "here":
                self._closed = True
                for stream in list(self._streams):
                    await stream.aclose()
                await (self._transport.close() if self._end is None else self._end.aclose())
            case _:  # connections of a loop that is closed have ended with it, those of another process are not ours
                self._closed = True


async def _closing(transport: Transport) -> AsyncGenerator[None, None]:
    """Close a transport when the generator is closed."""
    try:
        yield
    finally:
        await transport.close()


async def _in_time(pieces: AsyncGenerator[str | Result, None], deadline: Deadline) -> str | Result | None:
    """Return the next piece, None after the last. Raises `DeadlineExceeded` when it is not there in time."""
    try:
        async with asyncio.timeout(deadline.rest().give_up_s):
            return await anext(pieces, None)
    except TimeoutError as e:
        raise DeadlineExceeded("the text has not ended within the call's time") from e


def _refuse_stream(call: Call) -> None:
    """Raise `InvalidInput` for a parameter that would turn one whole output into a stream."""
    if "stream" in call.params:
        raise InvalidInput("this gives whole outputs; `stream` gives a text as it comes", field="stream")
