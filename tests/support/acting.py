"""An engine that does what the texts tell it to, in place of a backbone; and a worker process of it.

`abort` ends the process as a crash in native code does, `die` waits until the test has ended the worker, `raise` and `panic`
raise, `slow` takes `slow_s`. The word before it says where: `prepare:abort`, `step:abort`. A package of a vFM `deadly…` ends
the process that fits it, and one of `dying…` waits for the test.
"""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.noop import BACKBONE, NoopEngine, NoopJob, main
from fmplex_broker.errors import FmplexError, JobFailed
from fmplex_broker.packages.package import Package
from fmplex_broker.wire.messages import Request
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


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(level="INFO")
    main(ActingEngine())
