"""`python -m fmplex_worker --config FLEET.toml [--backbone NAME] [--broker URL]`: run one worker until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop

from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.specs.fleet import BackboneSpec, artifacts_of, load_fleet
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.registry import Registry
from fmplex_worker.host.life import MakeScheduler
from fmplex_worker.host.service import Worker
from fmplex_worker.scheduling import make_scheduler


def main(scheduler: MakeScheduler = make_scheduler) -> int:
    """Run a worker as the command line says; return its exit status. `scheduler` makes the policy that the fleet file names."""
    parser = argparse.ArgumentParser(prog="fmplex_worker", description="Host one backbone and serve its vFMs.")
    parser.add_argument("--config", type=Path, required=True, help="fleet file (TOML)")
    parser.add_argument("--backbone", help="which backbone of the fleet file to host; needed if it has several")
    parser.add_argument("--broker", help="broker URL; overrides the file (and FMPLEX_BROKER)")
    parser.add_argument("--check", action="store_true", help="exit 0 if a worker of this host is alive, else 1")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        fleet = load_fleet(args.config)
        url = args.broker or os.environ.get("FMPLEX_BROKER") or fleet.broker
        if url == "embedded":
            print(
                "a worker needs a broker URL: --broker redis://…; `fmplex up` starts an embedded one", file=sys.stderr
            )
            return 2
        if args.check:
            return 0 if uvloop.run(_alive(url, args.backbone)) else 1
        open_redis(url)  # it does not connect yet; a URL that no broker can have is said before the model is loaded
        store = ArtifactStore(os.environ.get("FMPLEX_ARTIFACTS") or artifacts_of(fleet, url))
        uvloop.run(_serve(url, fleet.find(args.backbone), store, scheduler))
    except FmplexError as e:
        print(f"{e.code}: {e}", file=sys.stderr)
        return 2
    return 0


async def _alive(url: str, backbone: str | None) -> bool:
    """Tell whether this machine has a live worker, of a backbone if one is named."""
    redis = open_redis(url)
    try:
        view = await read_fleet(redis, Registry(redis, Scripts(redis)))
    finally:
        await redis.aclose()
    here = [worker for worker in view.workers if worker.host == socket.gethostname()]
    return any(backbone in (None, worker.backbone) for worker in here)


async def _serve(url: str, backbone: BackboneSpec, store: ArtifactStore, scheduler: MakeScheduler) -> None:
    gc.disable()  # of what comes until the worker serves nothing is garbage, and looking for it takes a tenth of the time
    # Imported late: `--help` and a broken fleet file should not wait for torch.
    import torch

    from fmplex_worker.engine.opening import open_engine
    from fmplex_worker.host.profile import profile
    from fmplex_worker.tuning.opening import open_run

    if backbone.worker.threads is not None:
        torch.set_num_threads(backbone.worker.threads)
    engine = open_engine(backbone, backbone.worker, open_run if backbone.worker.tuning.enabled else None)
    cost = profile(engine, backbone.pass_units)
    # What is here now stays. Going through all of it (torch, the model: 400,000 objects) would halt every pass for 0.2 s, each
    # time enough versions have come and gone.
    gc.collect()
    gc.freeze()
    gc.enable()
    worker = Worker(url, backbone, backbone.worker, engine, store, cost, scheduler)
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, worker.stop)
    await worker.run()


if __name__ == "__main__":
    sys.exit(main())
