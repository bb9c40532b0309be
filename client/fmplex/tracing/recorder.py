"""Recording the passes that the workers of a fleet report."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fmplex.tracing.recording import RecordingHeader, RecordingWriter
from fmplex_broker.errors import NoWorker
from fmplex_broker.streams.catalog import Catalog
from fmplex_broker.streams.connection import open_redis
from fmplex_broker.streams.tracing import ReceivedReport, Tracer
from fmplex_broker.wire.passes import TRAINING, PassRecord

_LOOK_S = 0.25
_PATIENCE_S = 10.0  # workers report once a second, much later on a machine that is overloaded


@dataclass(slots=True)
class RecordingProgress:
    """The counts of what has been recorded so far. `since`: monotonic seconds when it began, 0 before that; `silent`: workers
    that live but did not report their last passes."""

    since: float = 0.0
    passes: int = 0
    jobs: int = 0
    vfms: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    _numbers: dict[str, tuple[int, int]] = field(default_factory=dict)  # worker -> its first and its last pass

    def add(self, passes: Iterable[PassRecord]) -> None:
        """Count passes that were recorded."""
        for record in passes:
            if record.cls == TRAINING:  # no passes, and they have no numbers
                continue
            self.passes += 1
            self.jobs += sum(part.jobs for part in record.parts)
            self.vfms.update(part.vfm for part in record.parts)
            first, last = self._numbers.get(record.worker, (record.number, record.number))
            self._numbers[record.worker] = min(first, record.number), max(last, record.number)

    @property
    def missing(self) -> int:
        """Number of passes that ran but were not reported: more in a second than a worker keeps, or the broker was away."""
        return sum(last - first + 1 for first, last in self._numbers.values()) - self.passes


class PassRecorder:
    """A recording in the making: into a new file, `path`, until `stop` is set or so many seconds have passed. The file holds all
    passes that began within that time and have ended. `on_progress` is called with each report."""

    def __init__(self, path: Path, stop: asyncio.Event, on_progress: Callable[[RecordingProgress], None]) -> None:
        self.progress = RecordingProgress()
        self._path = path
        self._stop = stop
        self._on_progress = on_progress
        self._reported_ms: dict[str, int] = {}  # worker -> its last report, server ms

    async def record(self, url: str, seconds: float | None) -> None:
        """Record from the broker `url` for so many seconds; None: until stopped.

        Raises `NoWorker` when no worker reports, `BrokerUnavailable`, and what `RecordingWriter` raises.
        """
        redis = open_redis(url)
        try:
            self._catalog = Catalog(redis)
            self._backbones = list(await self._catalog.backbones())
            tracer = Tracer(redis, self._backbones)
            await self._await_workers(tracer)
            if not self._stop.is_set():
                await self._write(tracer, seconds)
        finally:
            await redis.aclose()

    async def _live(self) -> set[str]:
        return {worker for backbone in self._backbones for worker in await self._catalog.live_workers(backbone)}

    async def _await_workers(self, tracer: Tracer) -> None:
        """Wait until every live worker records. Raises `NoWorker`."""
        live = await self._live()
        if not live:
            raise NoWorker("no worker is alive, so there are no passes; start a fleet with `fmplex up`")
        end = time.monotonic() + _PATIENCE_S
        while not live <= self._reported_ms.keys() and time.monotonic() < end and not self._stop.is_set():
            self._note(await tracer.read())
            await self._pause(_LOOK_S)
        if not self._reported_ms and not self._stop.is_set():
            raise NoWorker(
                "no worker tells of its passes; do the workers run this version of FMplex, and do they answer?"
            )

    async def _write(self, tracer: Tracer, seconds: float | None) -> None:
        begin_ms = await tracer.now_ms()
        writer = RecordingWriter(self._path, RecordingHeader(begin_ms, self._backbones, sorted(self._reported_ms)))
        try:
            self.progress.since = now = time.monotonic()
            end = now + (seconds if seconds is not None else math.inf)
            while now < end and not self._stop.is_set():
                self._append(writer, await tracer.read(), begin_ms, math.inf)
                await self._pause(min(_LOOK_S, end - now))
                now = time.monotonic()
            await self._await_last_reports(tracer, writer, begin_ms)
        finally:
            writer.close()

    async def _await_last_reports(self, tracer: Tracer, writer: RecordingWriter, begin_ms: int) -> None:
        """Append what has run by now, which comes with each worker's next report; dead workers have none."""
        end_ms = await tracer.now_ms()
        end = time.monotonic() + _PATIENCE_S
        while True:
            self._append(writer, await tracer.read(), begin_ms, end_ms)
            live = await self._live()
            self.progress.silent = {
                worker for worker, at_ms in self._reported_ms.items() if at_ms < end_ms and worker in live
            }
            if not self.progress.silent or time.monotonic() > end:
                return
            await asyncio.sleep(_LOOK_S)

    def _append(self, writer: RecordingWriter, heard: list[ReceivedReport], begin_ms: float, end_ms: float) -> None:
        passes = [p for p in self._note(heard) if begin_ms <= p.start_ms < end_ms]
        writer.add(passes)
        self.progress.add(passes)
        self._on_progress(self.progress)

    def _note(self, heard: list[ReceivedReport]) -> list[PassRecord]:
        """Note when each worker reported; return the passes of all reports."""
        for at_ms, report in heard:
            self._reported_ms[report.worker] = at_ms
        return [record for _, report in heard for record in report.passes]

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
