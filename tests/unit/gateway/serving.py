"""The gateway's application behind a real socket, as `python -m fmplex_gateway` serves it, on a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from fmplex_gateway.protocol import Connection
from tests.support.waiting import wait_until
from tests.unit.gateway.site import Site, site

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


class Serving:
    """A gateway that serves: its port, and a hand in its event loop."""

    def __init__(self, place: Site, server: uvicorn.Server, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self.place = place
        self.server = server
        self.loop = loop
        self.port = port

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the gateway's event loop; return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self, received_bytes: int | None = None) -> socket.socket:
        """Open a connection; `received_bytes`: room for what is not read."""
        client = socket.socket()
        if received_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, received_bytes)
        client.settimeout(30)
        client.connect(("127.0.0.1", self.port))
        return client


def request(method: str, path: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """Make a request as bytes; `length`: what it says of its body, if that is not true."""
    length = len(body) if length is None else length
    lines = [f"{method} {path} HTTP/1.1", "host: gateway", f"content-length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def status(client: socket.socket) -> int:
    """Read one answer, and no more; return its status."""
    response = HTTPResponse(client)
    response.begin()
    response.read()
    return response.status


def answer(client: socket.socket) -> bytes:
    """Read until the gateway closes the connection."""
    read = b""
    while part := client.recv(1 << 16):
        read += part
    return read


@contextmanager
def serving(folder: Path, gateway: Mapping[str, Any] | None = None, loop: str = "uvloop") -> Iterator[Serving]:
    """Serve until the block ends."""
    found: list[Serving] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]

        async def serve() -> None:
            async with site(folder, gateway) as place:
                config = uvicorn.Config(place.app, http=Connection, lifespan="off", log_level="warning")
                server = uvicorn.Server(config)
                found.append(Serving(place, server, asyncio.get_running_loop(), port))
                await server.serve(sockets=[listening])

        def run() -> None:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(serve())

        thread = threading.Thread(target=run)
        thread.start()
        try:
            wait_until(lambda: found and found[0].server.started, "it serves", 30)
            yield found[0]
        finally:
            if found:
                found[0].server.should_exit = found[0].server.force_exit = True
            thread.join(30)
            assert not thread.is_alive()
