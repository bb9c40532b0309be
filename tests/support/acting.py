"""An engine that does what the texts tell it to, in place of a backbone; and a worker process of it.

`abort` ends the process as a crash in native code does, `die` waits until the test has ended the worker, `raise` and `panic`
raise, `slow` takes `slow_s`. The word before it says where: `prepare:abort`, `step:abort`. A package of a vFM `deadly…` ends
the process that fits it, and one of `dying…` waits for the test.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.noop import BACKBONE, NoopEngine, NoopJob
from fmplex_broker.errors import FmplexError, JobFailed
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.wire.messages import Request
from fmplex_worker.host.service import Worker
from fmplex_worker.protocol import Fitted, Outcome, Prepared, Work

NAME = BACKBONE


class Panic(BaseException):
    """As libraries in Rust raise it: no Exception."""


@dataclass(frozen=True, slots=True)
class Acting(NoopJob):
    """A job that keeps its text."""

    text: str = ""


class ActingEngine(NoopEngine):
    """`slow_s`: how long a slow one takes; `gate`: what a step waits for; `quick`: whether slow texts say that they are."""

    def __init__(self, slow_s: float = 0.0, honest: bool = True) -> None:
        super().__init__()
        self.slow_s, self.honest = slow_s, honest
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()
        self.dying, self.dead = threading.Event(), threading.Event()

    def fit(self, package: Package) -> Fitted:
        if package.spec.name.startswith("deadly"):
            os.abort()
        if package.spec.name.startswith("dying"):
            self.dying.set()
            assert self.dead.wait(120)
        return package

    def quick(self, digest: str, request: Request) -> bool:
        return not (self.honest and str(request.input).startswith("prepare:slow"))

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        for _, request in batch:
            self._act("prepare", request.input)
        return [Acting(digest, text=request.input) for digest, request in batch]

    def step(self, work: Sequence[Work]) -> Outcome:
        self.stepping.set()
        assert self.gate.wait(120)
        texts = [job.text if isinstance(job, Acting) else "" for job, _ in work]
        for text in texts:
            self._act("step", text)
        results: list[Any] = [JobFailed("no") if text == "fail" else {"text": text} for text in texts]
        return Outcome(0.001, results)

    def _act(self, place: str, text: str) -> None:
        where, _, what = text.partition(":")
        if where != place:
            return
        if what.startswith("abort"):
            os.abort()
        if what.startswith("die"):
            self.dying.set()
            assert self.dead.wait(120)
        if what.startswith("raise"):
            raise ValueError("as it was told")
        if what.startswith("panic"):
            raise Panic("as it was told")
        if what.startswith("slow"):
            time.sleep(self.slow_s)


async def serve(url: str, artifacts: str, lease_ms: int) -> None:
    """Run one worker until SIGTERM."""
    backbone, spec = BackboneSpec(name=NAME, model="none"), WorkerSpec(lease_ms=lease_ms)
    worker = Worker(url, backbone, spec, ActingEngine(), ArtifactStore(artifacts))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", required=True)
    parser.add_argument("--artifacts", required=True)
    parser.add_argument("--lease-ms", type=int, required=True)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(level="INFO")
    asyncio.run(serve(args.broker, args.artifacts, args.lease_ms))
