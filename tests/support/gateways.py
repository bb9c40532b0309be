"""A gateway of a few lines, on a socket: it answers every call with its inputs, without a fleet."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgpack

_RUN = {"version": "v1", "units": 1, "queue_ms": 0.0, "run_ms": 0.0, "load_ms": 0.0}
REFUSED = "refuse this"


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open

    def do_POST(self) -> None:
        inputs = msgpack.unpackb(self.rfile.read(int(self.headers["content-length"])))["inputs"]
        bad = next((at for at, value in enumerate(inputs) if value == REFUSED), None)
        runs = [_RUN for _ in inputs]
        body = msgpack.packb({"version": "v1", "outputs": [{"text": value} for value in inputs], "runs": runs})
        if bad is not None:
            error = {"code": "invalid_input", "message": "is refused", "field": f"inputs.{bad}"}
            body = json.dumps({"error": error}).encode()
        self.send_response(200 if bad is None else 422)
        self.send_header("content-type", "application/msgpack")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def echoing_gateway() -> Iterator[str]:
    """Give the URL of a gateway that answers `{"text": INPUT}` to every input but `REFUSED`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextmanager
def silent_host() -> Iterator[str]:
    """Give `HOST:PORT` of one that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def unreachable_host() -> Iterator[str]:
    """Give `HOST:PORT` of one that takes no connection and refuses none, like a machine that is off: its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"
        for each in waiting:
            each.close()
