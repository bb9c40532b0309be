"""A worker whose engine does nothing: what remains is the broker, the protocol and the event loop."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from fmplex_broker.errors import FmplexError, InvalidInput
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.wire.messages import Request
from fmplex_worker.host.service import Worker
from fmplex_worker.protocol import Capacity, EngineInfo, Fitted, OnePass, Outcome, Prepared, Work
from fmplex_worker.training import Training, TuneOrder

BACKBONE = "noop"
FINGERPRINT = Fingerprint(model="none", config="", weights="", tokenizer="", dtype="float32")
UNITS = 8  # a job


@dataclass(frozen=True, slots=True)
class NoopJob(OnePass):
    """A job of one pass that needs nothing."""

    digest: str
    units: int = UNITS
    adapter: int = 0
    head: int = 0


class NoopEngine:
    """Answers every job with the same small output, in no time."""

    def __init__(self) -> None:
        self._loaded: dict[str, int] = {}

    info = EngineInfo(BACKBONE, "text", 1, 512, "cpu", 0, FINGERPRINT)
    capacity = Capacity(2048)

    @property
    def loaded(self) -> Mapping[str, int]:
        """Versions that are loaded; see `Engine.loaded`."""
        return self._loaded

    @property
    def device_bytes(self) -> int:
        """No bytes; see `Engine.device_bytes`."""
        return 0

    def aim(self, units: int) -> None:
        """Take whatever budget there is; see `Engine.aim`."""

    def fit(self, package: Package) -> Fitted:
        """Take a package as it is; see `Engine.fit`."""
        return package

    def load(self, fitted: Fitted) -> None:
        """Load a version; see `Engine.load`."""
        self._loaded[fitted.digest] = 0

    def unload(self, digest: str) -> None:
        """Unload a version; see `Engine.unload`."""
        self._loaded.pop(digest, None)

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        """Prepare jobs, whatever they ask; see `Engine.prepare`."""
        return [NoopJob(digest) for digest, _ in batch]

    def tune(self, order: TuneOrder, state: bytes | None) -> Training:
        """Refuse, as there is nothing to train; see `Engine.tune`."""
        raise InvalidInput("this backbone trains nothing", field="model")

    def quick(self, digest: str, request: Request) -> bool:
        """Tell that nothing takes any time; see `Engine.quick`."""
        return True

    def drop(self, prepared: Prepared) -> None:
        """Keep nothing of a job; see `Engine.drop`."""

    def step(self, work: Sequence[Work]) -> Outcome:
        """Answer every job, in 1 µs each by the clock that is reported; see `Engine.step`."""
        output: list[Any] = [{"ok": True}] * len(work)
        return Outcome(1e-6 * len(work), output)


def main(engine: NoopEngine) -> None:
    """Run one worker of an engine until SIGTERM, as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", required=True)
    parser.add_argument("--artifacts", required=True)
    parser.add_argument("--lease-ms", type=int, default=3000)
    args = parser.parse_args()
    uvloop.run(_serve(engine, args.broker, args.artifacts, args.lease_ms))


async def _serve(engine: NoopEngine, url: str, artifacts: str, lease_ms: int) -> None:
    backbone, spec = BackboneSpec(name=BACKBONE, model="none"), WorkerSpec(lease_ms=lease_ms)
    worker = Worker(url, backbone, spec, engine, ArtifactStore(artifacts))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


if __name__ == "__main__":
    main(NoopEngine())
