"""A TCP proxy between one process and a server on this machine, and what can happen to its connections."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Self

from tests.support.listener import Listener

_LINGER_0 = struct.pack("ii", 1, 0)  # closing sends a reset, and nothing that is still to be sent
_GONE = (OSError, RuntimeError)  # uvloop raises the second kind for a transport that has just been closed


class FaultProxy:
    """Stands between a process and the server on port `target`. Use as an async context manager; its port stays the same.

    `cut`: connections are reset, new ones work. `stall`: nothing comes through until `resume`, then all of it. `silence`: those
    that are open now stay open and nothing comes through them any more, new ones work (a host that has gone without a word).
    `reset_new`: new ones are accepted and reset at once. `refuse`: nobody listens any more, until `listen`.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = Listener(self._accept)
        self._resets = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._lines: dict[_Line, asyncio.Task[None]] = {}

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.port

    @property
    def url(self) -> str:
        """Broker URL for the process."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def open_lines(self) -> int:
        """Count the connections that the process holds."""
        return len(self._lines)

    def listen(self) -> None:
        """Let connections through; on a free port the first time, then on the same."""
        self._resets = False
        self._listener.open()

    def refuse(self) -> None:
        """Stop listening, and cut what is open."""
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for line in list(self._lines):
            line.reset()

    def reset_new(self) -> None:
        """Cut what is open, and reset every new connection once it is accepted, until `listen`."""
        self._resets = True
        self.cut()

    def stall(self) -> None:
        """Hold back whatever comes, from either side, until `resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        """Let go what was held back."""
        self._flowing.set()

    def silence(self) -> None:
        """Leave the connections open and let nothing more through them, for ever."""
        for line in self._lines:
            line.silent = True

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(writer, self._flowing)
        if self._resets or not self._listener.is_open:
            line.reset()
            return
        self._lines[line] = task = asyncio.create_task(line.run(reader, self._target))
        task.add_done_callback(lambda _: self._lines.pop(line, None))

    async def __aenter__(self) -> Self:
        self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        await self._listener.handed_over()
        tasks = list(self._lines.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Line:
    """One connection: bytes go both ways until one side ends it. `silent`: nothing comes through, and only the process, which
    knows nothing of it, can end it."""

    def __init__(self, writer: asyncio.StreamWriter, flowing: asyncio.Event) -> None:
        self.silent = False
        self._flowing = flowing
        self._ends = [writer]

    async def run(self, reader: asyncio.StreamReader, target: int) -> None:
        """Connect to the server and carry bytes until it is over."""
        pumps: list[asyncio.Task[None]] = []
        try:
            await self._flowing.wait()
            there, back = await asyncio.open_connection("127.0.0.1", target)
            self._ends.append(back)
            pumps = [
                asyncio.create_task(self._pump(reader, back)),
                asyncio.create_task(self._pump(there, self._ends[0])),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if self.silent:
                await asyncio.wait(pumps[:1])
        except OSError:  # nobody listens there: the process sees a connection that is accepted and closed
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in self._ends:
                writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(*_GONE):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                if not self.silent:
                    writer.write(data)
                    await writer.drain()
            await self._flowing.wait()  # an end does not come through either

    def reset(self) -> None:
        """End both sides at once, by a reset."""
        for writer in self._ends:
            with suppress(*_GONE):
                if (sock := writer.get_extra_info("socket")) is not None:  # else it is closed already
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            writer.transport.abort()
