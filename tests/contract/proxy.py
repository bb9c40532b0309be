"""A TCP proxy that cuts connections in the three ways that matter to a protocol."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from tests.support.listener import Listener

FAULTS = ("before", "after", "late")
_LATE_S = 0.4


class CuttingProxy:
    """Stands in front of the server. With probability `rate` a command's connection is cut:

    before  the command never reaches the server;
    after   the server has run it, the answer is lost;
    late    the client sees the cut at once, and the server runs the command some time later.
    """

    def __init__(self, target: int, rng: random.Random, rate: float = 0.0) -> None:
        self.rate = rate
        self.cuts = dict.fromkeys(FAULTS, 0)
        self._target = target
        self._rng = rng
        self._listener = Listener(self._accept)
        self._lines: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> CuttingProxy:
        self._listener.open()
        self.url = f"redis://127.0.0.1:{self._listener.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self._listener.handed_over()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)
        for writer in self._open:
            writer.close()
        await asyncio.gather(*(w.wait_closed() for w in self._open), return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        line = asyncio.create_task(self._line(reader, writer))
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._open.add(back)
        answers = asyncio.create_task(_copy(there, writer))
        try:
            with suppress(OSError):
                while command := await reader.read(1 << 16):
                    if self._rng.random() < self.rate:
                        await self._cut(command, answers, there, back, writer)
                        return
                    back.write(command)
                    await back.drain()
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            writer.close()
            back.close()

    async def _cut(
        self,
        command: bytes,
        answers: asyncio.Task[None],
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
        writer: asyncio.StreamWriter,
    ) -> None:
        how = self._rng.choice(FAULTS)
        self.cuts[how] += 1
        if how == "before":
            return
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)
        if how == "late":
            writer.close()
            await asyncio.sleep(self._rng.uniform(0, _LATE_S))
        back.write(command)
        await back.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(there.read(1 << 16), 1)  # the server has run it


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
