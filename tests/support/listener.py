"""A TCP listener of the tests that may close while connections come."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

Accepted = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


class Listener:
    """Listens on a port of this machine and calls `accepted` for each connection, also for those that it had accepted when it
    closed. (asyncio's own servers drop these on the floor: their sockets stay open until they are collected.) Its port stays
    the same."""

    def __init__(self, accepted: Accepted) -> None:
        self.port = 0
        self._accepted = accepted
        self._socket: socket.socket | None = None
        self._making: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """True while it listens."""
        return self._socket is not None

    def open(self) -> None:
        """Listen; on a free port the first time, then on the same."""
        if self._socket is None:
            self._socket = socket.create_server(("127.0.0.1", self.port), backlog=1024)
            self._socket.setblocking(False)
            self.port = self._socket.getsockname()[1]
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept, self._socket)

    def close(self) -> None:
        """Stop listening. Who has not been accepted yet is reset."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    async def handed_over(self) -> None:
        """Wait until `accepted` has been called for all that were accepted."""
        await asyncio.gather(*self._making)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone again
            return
        connection.setblocking(False)
        task = asyncio.create_task(self._make(connection))
        self._making.add(task)
        task.add_done_callback(self._making.discard)

    async def _make(self, connection: socket.socket) -> None:
        self._accepted(*await asyncio.open_connection(sock=connection))
