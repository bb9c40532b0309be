"""`python -m fmplex_gateway --config FLEET.toml [--broker URL] [--host H] [--port P | --fd N]`: run one gateway until SIGTERM."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from fmplex_broker.errors import FmplexError, InvalidInput
from fmplex_broker.memory import keep_one_heap
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.specs.fleet import artifacts_of, load_fleet
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.app import create_app
from fmplex_gateway.protocol import Connection

_CONNECTIONS = 65_536
_NOT_STARTED = 3  # the exit code of uvicorn's own command


def main() -> int:
    """Run one gateway until SIGTERM; return the exit code: 0, 2 for a wrong configuration, 3 if it could not begin to serve."""
    args = _arguments()
    keep_one_heap()  # bodies are taken apart by threads
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        fleet = load_fleet(args.config)
        listening = None if args.fd is None else _inherited(args.fd)
        url = args.broker or os.environ.get("FMPLEX_BROKER") or fleet.broker
        if url == "embedded":
            raise InvalidInput("a gateway needs a broker URL: --broker redis://…; `fmplex up` starts an embedded one")
        QueueClient.connect(url)  # it does not connect yet: what no broker's URL can be is said here
        store = ArtifactStore(os.environ.get("FMPLEX_ARTIFACTS") or artifacts_of(fleet, url))
        app = create_app(lambda: QueueClient.connect(url), fleet.gateway, store, fleet.names)
    except FmplexError as e:
        print(f"{e.code}: {e}", file=sys.stderr)
        return 2
    host = args.host or fleet.gateway.host
    port = fleet.gateway.port if args.port is None else args.port
    return _serve(app, host, port, listening)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fmplex_gateway", description="The HTTP front of a fleet.")
    parser.add_argument("--config", type=Path, required=True, help="fleet file (TOML)")
    parser.add_argument("--broker", help="broker URL; overrides the file (and FMPLEX_BROKER)")
    parser.add_argument("--host", help="address to bind; overrides the file")
    parser.add_argument("--port", type=int, help="port to bind; overrides the file")
    parser.add_argument("--fd", type=int, help="descriptor of an inherited, bound TCP socket to serve on instead")
    args = parser.parse_args()
    if args.fd is not None and (args.host is not None or args.port is not None):
        parser.error("--fd goes without --host and --port: the socket has its address")
    return args


def _inherited(fd: int) -> socket.socket:
    """Return the socket that the parent process has left open. Raises `InvalidInput` if there is none of TCP."""
    try:
        found = socket.socket(fileno=fd)
    except (OSError, ValueError, OverflowError) as e:
        raise InvalidInput(f"--fd {fd}: no open socket ({e}); let the child inherit it", field="fd") from e
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
        raise InvalidInput(f"--fd {fd}: not a TCP socket; give one that is bound to an address", field="fd")
    return found


def _serve(app: FastAPI, host: str, port: int, listening: socket.socket | None) -> int:
    """Serve on the socket, or without one on `host` and `port`; return the exit code."""
    _allow_connections()
    gc.collect()
    gc.freeze()  # a collection that goes through all that was imported would halt every request
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=Connection,  # type: ignore[arg-type]  # it is a protocol of asyncio, if not of the kind that uvicorn's are
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=20,
    )
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        server.run(sockets=None if listening is None else [listening])
    return 0 if server.started else _NOT_STARTED


def _allow_connections() -> None:
    """Allow as many open sockets as the system lets this process have: the usual thousand is soon used up by idle clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, _CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


if __name__ == "__main__":
    sys.exit(main())
