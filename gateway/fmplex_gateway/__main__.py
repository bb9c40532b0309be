"""`python -m fmplex_gateway --config FLEET.toml [--broker URL] [--host H] [--port P]`: run one gateway until SIGTERM."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from pathlib import Path

import uvicorn

from fmplex_broker.errors import FmplexError, InvalidInput
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.specs.fleet import load_fleet
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.app import create_app


def main() -> int:
    """Run one gateway until SIGTERM; return the exit code: 0, or 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(prog="fmplex_gateway", description="The HTTP front of a fleet.")
    parser.add_argument("--config", type=Path, required=True, help="fleet file (TOML)")
    parser.add_argument("--broker", help="broker URL; overrides the file (and FMPLEX_BROKER)")
    parser.add_argument("--host", help="address to bind; overrides the file")
    parser.add_argument("--port", type=int, help="port to bind; overrides the file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        fleet = load_fleet(args.config)
        store = ArtifactStore(os.environ.get("FMPLEX_ARTIFACTS") or fleet.artifacts)
        url = args.broker or os.environ.get("FMPLEX_BROKER") or fleet.broker
        if url == "embedded":
            raise InvalidInput("a gateway needs a broker URL: --broker redis://…; `fmplex up` starts an embedded one")
        backbones = [fleet.backbone.name]
        app = create_app(lambda: QueueClient.connect(url), fleet.gateway, store, backbones)
    except FmplexError as e:
        print(f"{e.code}: {e}", file=sys.stderr)
        return 2
    host = args.host or fleet.gateway.host
    port = fleet.gateway.port if args.port is None else args.port
    gc.collect()
    gc.freeze()  # a collection that goes through all that was imported would halt every request
    uvicorn.run(
        app, host=host, port=port, loop="uvloop", log_level="warning", access_log=False, timeout_graceful_shutdown=20
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
