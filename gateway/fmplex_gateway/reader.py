"""Reading of large bodies beside the event loop: in processes, since a parser holds the interpreter from beginning to end, and
what it makes of a few megabytes may be gigabytes."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import subprocess
import sys
import time
import weakref
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

from pydantic import BaseModel

from fmplex_broker.errors import TooLarge, Unavailable, from_wire
from fmplex_broker.wire.messages import packb, unpackb
from fmplex_gateway.parsing import validate
from fmplex_gateway.receiving import Body

log = logging.getLogger(__name__)
_PROCESSES = 2
_START_S, _MOST_S = 60.0, 60.0  # a body of 33 MB takes seconds
_READ_BYTES = 1 << 20
_COMMAND = (sys.executable, "-m", "fmplex_gateway.reader_child")
B = TypeVar("B", bound=BaseModel)


class Reader:
    """Reads large bodies in processes that begin when they are first needed. Two bodies at a time, and one of each principal, so
    that nobody's bodies stand in the way of all others'. Close it when done."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_PROCESSES, thread_name_prefix="reader")
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def read(self, kind: type[B], body: Body, who: str, *, msgpack: bool) -> B:
        """Decode a body from JSON or msgpack and read it as `kind`; `who`: the principal's name.

        Raises `InvalidInput` naming the field, and `TooLarge`: made of too many values, or what takes too much memory or time.
        """
        async with self._turns[who]:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, kind, body, msgpack)

    def _read(self, kind: type[B], body: Body, msgpack: bool) -> B:
        child = self._ready()
        self._busy.add(child)
        try:
            error, value, last = child.ask([f"{kind.__module__}:{kind.__qualname__}", msgpack, body.size], body)
        except (EOFError, OSError, TimeoutError) as e:
            child.end()
            raise TooLarge("the body takes too much memory or time to be read; split the call") from e
        except BaseException:
            child.end()
            raise
        finally:
            self._busy.discard(child)
        # The next one is started at once, so that nobody waits for its start.
        self._idle.append(_Child() if last else child)
        if error is not None:
            raise from_wire(error)
        return validate(kind, value)

    def _ready(self) -> _Child:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            child.end()
        return _Child()

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in [*self._busy]:
            child.kill()  # whoever waits for it sees that, and ends it
        while self._idle:
            self._idle.pop().end()


class _Child:
    """Handle on a process, from the gateway's side. It holds nothing of the gateway's but two pipes, and ends when they close."""

    def __init__(self) -> None:
        self._started = False
        self._process = subprocess.Popen(
            _COMMAND,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the gateway, which drains
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        self.end = weakref.finalize(self, _end, self._process)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def ask(self, about: list[Any], body: Body) -> tuple[dict[str, Any] | None, dict[str, Any], bool]:
        """Ask about a body; return the error, if there is one, or the value, and whether the process ends now.

        Raises `EOFError`, `OSError` or `TimeoutError`: this body was too much for it. `Unavailable`: it does not even start.
        """
        if not self._started:
            self._wait()
        until = time.monotonic() + _MOST_S
        head = packb(about)
        for part in chain((len(head).to_bytes(8), head), body.parts()):
            self._send(part, until)
        size, last = int.from_bytes(self._receive(8, until)), self._receive(1, until) != b"\0"
        error, value = unpackb(bytes(self._receive(size, until)))
        return error, value, last

    def _wait(self) -> None:
        try:
            self._receive(1, time.monotonic() + _START_S)
            self._started = True
        except (EOFError, OSError) as e:
            log.error("%s does not start (exit code %s)", " ".join(_COMMAND), self._process.poll())
            raise Unavailable("large bodies cannot be read now; the gateway's log says more") from e

    def _send(self, part: bytes | bytearray, until: float) -> None:
        left = memoryview(part)
        while left:
            _wait_for(self._to, select.POLLOUT, until)
            left = left[os.write(self._to, left) :]

    def _receive(self, count: int, until: float) -> bytearray:
        data = bytearray()
        while len(data) < count:
            _wait_for(self._from, select.POLLIN, until)
            part = os.read(self._from, min(count - len(data), _READ_BYTES))
            if not part:
                raise EOFError
            data += part
        return data


def _wait_for(fd: int, what: int, until: float) -> None:
    poll = select.poll()
    poll.register(fd, what)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()
