"""The load: closed-loop HTTP/1.1 clients in one process, as lean as Python allows, the same for every server.

    python -m benchmarks.rivals_http.load

reads one JSON object a line, `{"port", "path", "clients", "bodies"}`, sends every body once over `clients` connections that stay
open, and answers with one line: `{"seconds", "latencies", "failed", "last"}`. `failed`: first answers that were not 200.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

from benchmarks.processes import LineProcess


@dataclass(slots=True)
class Round:
    """State that the connections of one round share: the requests not sent yet, and what came back."""

    requests: Iterator[bytes]
    latencies: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    last: bytes = b""


class Connection(asyncio.Protocol):
    """One client that sends, waits for the whole answer, sends the next, until there are no more."""

    def __init__(self, shared: Round) -> None:
        self._shared = shared
        self._buffer = bytearray()
        self._needed = 0  # length of the whole answer; 0: its head has not arrived
        self._sent = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection; see `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def send_next(self) -> None:
        """Send the next request, or be done."""
        request = next(self._shared.requests, None)
        if request is None:
            self.done.set_result(None)
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer, and send the next request once it is whole; see `asyncio.Protocol`."""
        self._buffer += data
        if not self._needed:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._needed = end + 4 + _content_length(self._buffer[:end])
        if len(self._buffer) < self._needed:
            return
        self._shared.latencies.append(time.perf_counter() - self._sent)
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self._shared.failed.append(self._buffer[:500].decode(errors="replace"))
        self._shared.last = bytes(self._buffer[self._buffer.find(b"\r\n\r\n") + 4 :])
        self._buffer.clear()
        self._needed = 0
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the server hung up too early; see `asyncio.Protocol`."""
        if not self.done.done():
            self._shared.failed.append(f"the server closed the connection: {exc}")
            self.done.set_result(None)

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


def _content_length(head: bytearray) -> int:
    for line in bytes(head).lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise ValueError(f"an answer without Content-Length: {bytes(head)!r}")


async def _round(port: int, path: str, clients: int, bodies: list[str]) -> dict[str, Any]:
    shared = Round(iter([_request(port, path, body.encode()) for body in bodies]))
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(clients):
        _, connection = await loop.create_connection(lambda: Connection(shared), "127.0.0.1", port)
        connections.append(connection)
    begun = time.perf_counter()
    for connection in connections:
        connection.send_next()
    await asyncio.gather(*(connection.done for connection in connections))
    seconds = time.perf_counter() - begun
    for connection in connections:
        connection.close()
    return {
        "seconds": seconds,
        "latencies": shared.latencies,
        "failed": shared.failed[:3],
        "last": shared.last.decode(errors="replace"),
    }


def _request(port: int, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


class Clients(LineProcess):
    """The load's process, as the benchmark holds it."""

    def __init__(self) -> None:
        super().__init__("benchmarks.rivals_http.load")

    def round(self, port: int, path: str, clients: int, bodies: list[str]) -> dict[str, Any]:
        """Send every body once. Raises `RuntimeError` with the first answers that were errors."""
        order = {"port": port, "path": path, "clients": clients, "bodies": bodies}
        result: dict[str, Any] = json.loads(self.ask(json.dumps(order)))
        if result["failed"]:
            raise RuntimeError(f"requests to port {port}{path} failed: {result['failed'][0]}")
        return result


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(uvloop.run(_round(**json.loads(line)))), flush=True)
