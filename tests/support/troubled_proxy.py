"""A TCP proxy in front of the broker that plays what goes wrong: refusals of the server, and connections that do not work."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Any, Literal

import hiredis

from tests.support.listener import Listener

Trouble = Literal["none", "refuse", "close", "reset", "stall"]
_HELLO = b"CLIENT"  # what redis-py says when it connects


class TroubledProxy:
    """Stands in front of a server; `trouble` may change at any time:

    none    commands and answers go through;
    refuse  every command is answered with the error line `refusal`, also each one of a pipeline;
    close   connections are accepted, and closed at once (a load balancer before a dead server);
    reset   likewise, with an RST;
    stall   nothing goes either way, and nobody is told.

    `half_open` lets the connections that are there stall for ever, and new ones work. `target`: the server's port, None where
    there is no server.
    """

    def __init__(self, target: int | None = None) -> None:
        self.trouble: Trouble = "none"
        self.refusal = ""
        self.refused = 0  # commands
        self.accepted = 0  # connections
        self._target = target
        self._listener = Listener(self._accept)
        self._lines: set[_Line] = set()

    async def __aenter__(self) -> TroubledProxy:
        self._listener.open()
        self.port = self._listener.port
        self.url = f"redis://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self._listener.handed_over()
        await self.cut()

    def refuse(self, line: str) -> None:
        """Answer every command with an error line, from now on."""
        self.refusal, self.trouble, self.refused = line, "refuse", 0

    def half_open(self) -> int:
        """Let all connections that are there stall for ever; return how many."""
        for line in self._lines:
            line.stalled = True
        return len(self._lines)

    async def cut(self) -> None:
        """End all connections that are there."""
        await asyncio.gather(*(line.end() for line in list(self._lines)))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.trouble in ("close", "reset"):
            if self.trouble == "reset":  # to close with a linger of no time sends an RST
                sock: Any = writer.get_extra_info("socket")
                if sock is not None:  # else it is closed already
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.close()
            return
        line = _Line(self, reader, writer)
        self._lines.add(line)
        line.task.add_done_callback(lambda _: self._lines.discard(line))

    @property
    def target(self) -> int | None:
        """Port of the server behind it."""
        return self._target


class _Line:
    """One connection through the proxy."""

    def __init__(self, proxy: TroubledProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stalled = False
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._back: asyncio.StreamWriter | None = None
        self._answers: asyncio.Task[None] | None = None
        self._parser = hiredis.Reader()
        self.task = asyncio.create_task(self._run())

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            with suppress(OSError):
                while data := await self._reader.read(1 << 16):
                    await self._pass_on(data)
        finally:
            if self._answers is not None:
                self._answers.cancel()
                await asyncio.gather(self._answers, return_exceptions=True)
            for writer in (self._writer, self._back):
                if writer is not None:
                    writer.transport.abort()

    async def _pass_on(self, data: bytes) -> None:
        await self._while_stalled()
        if self._proxy.trouble == "refuse":
            self._parser.feed(data)
            while (command := self._parser.gets()) is not False:
                hello = self._proxy.target is not None and command[0] == _HELLO
                self._proxy.refused += not hello
                self._writer.write(b"+OK\r\n" if hello else f"-{self._proxy.refusal}\r\n".encode())
            await self._writer.drain()
            return
        if self._back is None:
            assert self._proxy.target is not None, "there is no server behind"
            there, self._back = await asyncio.open_connection("127.0.0.1", self._proxy.target)
            self._answers = asyncio.create_task(self._pass_back(there))
        self._back.write(data)
        await self._back.drain()

    async def _pass_back(self, there: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await there.read(1 << 16):
                await self._while_stalled()
                self._writer.write(data)
                await self._writer.drain()
        self._writer.close()

    async def _while_stalled(self) -> None:
        while self.stalled or self._proxy.trouble == "stall":  # noqa: ASYNC110  # both are plain flags of a test
            await asyncio.sleep(0.01)
