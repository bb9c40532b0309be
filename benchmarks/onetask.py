"""A worker that serves as others do: one task a pass, first come first served, from one backbone or from a copy per task.

It is the product's worker in all but two parts that are replaced here: the scheduler, and (with `--copies`) the engine.

    python -m benchmarks.onetask --config FLEET.toml --broker URL [--copies FOLDER ...]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import uvloop

from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.fleet import BackboneSpec, FleetSpec, artifacts_of, load_fleet
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.opening import open_engine
from fmplex_worker.host.profile import profile
from fmplex_worker.host.service import Worker
from fmplex_worker.protocol import Capacity, Engine, EngineInfo, Fitted, Outcome, Prepared, Work
from fmplex_worker.scheduling import CostModel, Item
from fmplex_worker.scheduling.fifo import Fifo
from fmplex_worker.training import Training, TuneOrder


class OneTask(Fifo):
    """Arrival order; the oldest job decides whose pass it is, and only jobs of its task join."""

    def add(self, item: Item) -> None:
        """Queue an item that shares passes with its own task only; see `Scheduler.add`."""
        super().add(replace(item, bucket=item.flow.vfm))


class Copies:
    """Many engines in one process, one of them at a time. Task `name-3` runs on the fourth."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._of: dict[str, Engine] = {}

    @property
    def info(self) -> EngineInfo:
        """The first engine's, with the memory of all; see `Engine.info`."""
        return replace(self._engines[0].info, memory_bytes=sum(e.info.memory_bytes for e in self._engines))

    @property
    def capacity(self) -> Capacity:
        """The smallest of all; see `Engine.capacity`."""
        return min((engine.capacity for engine in self._engines), key=lambda capacity: capacity.units)

    @property
    def loaded(self) -> Mapping[str, int]:
        """Versions of all engines; see `Engine.loaded`."""
        return {digest: size for engine in self._engines for digest, size in engine.loaded.items()}

    @property
    def device_bytes(self) -> int:
        """The first engine's; see `Engine.device_bytes`."""
        return self._engines[0].device_bytes

    def aim(self, units: int) -> None:
        """Tell all engines; see `Engine.aim`."""
        for engine in self._engines:
            engine.aim(units)

    def fit(self, package: Package) -> Fitted:
        """Fit a version to the engine of its task; see `Engine.fit`."""
        number = package.spec.name.rpartition("-")[2]
        engine = self._of[package.digest] = self._engines[int(number) if number.isdigit() else 0]
        return engine.fit(package)

    def load(self, fitted: Fitted) -> None:
        """Load a version; see `Engine.load`."""
        self._of[fitted.digest].load(fitted)

    def unload(self, digest: str) -> None:
        """Unload a version; see `Engine.unload`."""
        self._of[digest].unload(digest)

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        """Prepare jobs, each with its own engine; see `Engine.prepare`."""
        prepared: list[Any] = [None] * len(batch)
        for digest in {digest for digest, _ in batch}:
            places = [i for i, (other, _) in enumerate(batch) if other == digest]
            for i, job in zip(places, self._of[digest].prepare([batch[i] for i in places]), strict=True):
                prepared[i] = job
        return prepared

    def tune(self, order: TuneOrder, state: bytes | None) -> Training:
        """Train with the first engine; see `Engine.tune`."""
        return self._engines[0].tune(order, state)

    def quick(self, digest: str, request: Request) -> bool:
        """Ask the engine of its task; see `Engine.quick`."""
        return self._of[digest].quick(digest, request)

    def drop(self, prepared: Prepared) -> None:
        """Drop a job; see `Engine.drop`."""
        self._of[prepared.digest].drop(prepared)

    def step(self, work: Sequence[Work]) -> Outcome:
        """Run a pass, which is all of one task; see `Engine.step`."""
        return self._of[work[0].prepared.digest].step(work)


def engine_of(backbone: BackboneSpec, copies: Sequence[Path]) -> Engine:
    """Open the engine of the fleet's backbone, or one of a copy per task."""
    if not copies:
        return open_engine(backbone, backbone.worker)
    specs = [backbone.model_copy(update={"model": str(folder)}) for folder in copies]
    return Copies([open_engine(spec, backbone.worker) for spec in specs])


async def serve(url: str, fleet: FleetSpec, copies: Sequence[Path]) -> None:
    """Run one worker until SIGTERM."""

    def one_task(_name: str, cost: CostModel, budget: int, **_: object) -> OneTask:
        return OneTask(cost, budget)

    backbone, store = fleet.find(None), ArtifactStore(artifacts_of(fleet, url))
    torch.set_num_threads(backbone.worker.threads or 1)
    engine = engine_of(backbone, copies)
    cost = profile(engine, backbone.pass_units)
    worker = Worker(url, backbone, backbone.worker, engine, store, cost, one_task)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--copies", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    uvloop.run(serve(args.broker, load_fleet(args.config), args.copies))
