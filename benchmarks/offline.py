"""Does a batch leave interactive traffic alone, and does it use what that leaves?

One worker on a core of its own, two vFMs with a LoRA each; broker, gateway (which feeds the batch) and callers on the rest.
Interactive calls come as Poisson arrivals through the gateway, half of them to the batch's own vFM, half to the other one, at
20 and at 60 % of the lines a second that a batch does alone (nobody has called for some seconds); the same arrivals without and
with a batch. A batch is timed as its sender sees it, from `submit` to its end, and is as long as some seconds' work. Latency
counts from when a call was due, of those that were due while the batch was under way.

`ratios.interactive_p99_with_batch`: p99 with the batch over p99 without it and one offline slice, the worse load;
`idle_capacity_used`: lines a second of the batch over (1 - load) times those alone, the worse load; `batch_over_map`: lines a
second alone over those of the same texts through `map`, with the best of several windows. `samples.busy_without_at_60`: the part
of the time in which the device is busy without the batch (calls go in small passes, which take longer in all);
`interactive_429`: interactive calls that were refused; `upload_rss_mib`: how much the gateway grew during an upload of
`gateway.max_file_bytes`; `list_1000_s`: seconds to list 1,000 open batches.

    python -m benchmarks.offline [--json] [--rounds N] [--quick] [--backbone NAME] [--slice-ms N]

takes about nine minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import psutil

from benchmarks.fleet import LEASE_MS, cores, deploy, pin, write_fleet
from benchmarks.harness import Benchmark, Ratios, Report, main, without_pauses, worst
from benchmarks.models import SIZES, Tasks, texts
from benchmarks.openloop import Arrival, poisson
from benchmarks.stopping import run_async
from fmplex import AsyncBatch, AsyncClient
from fmplex.local import LocalFleet
from fmplex_broker.errors import Busy
from fmplex_broker.specs.fleet import WorkerSpec
from fmplex_broker.specs.gateway import GatewaySpec

_LOADS = (20, 60)  # %
_WINDOWS = (128, 512, 2048)  # of `map`
_LONGEST = 3  # times the seconds that a batch should take: arrivals for so long
_BLOCK = 1 << 18  # bytes
_LULL_S = 3.0  # after which offline passes are full


class Plan(NamedTuple):
    """The amount of what is measured: seconds of a batch, texts to see how many a second there may be, bytes of the upload, open
    batches to list."""

    seconds: float
    probe: int
    upload: int
    listed: int


class Bench:
    """One fleet, its processes by role, and a client of its gateway."""

    def __init__(self, report: Report, plan: Plan, fleet: LocalFleet, client: AsyncClient, vfms: Sequence[str]) -> None:
        self._report, self._plan = report, plan
        self._client, self._vfms, self._url = client, vfms, fleet.gateway_url
        self._gateway, self._worker = (_process(f"fmplex_{role}") for role in ("gateway", "worker"))
        self._texts = texts(4096)
        self._rate = 0.0  # lines a second, about

    def place(self) -> None:
        """Give the worker a core of its own, and the rest to all others."""
        *rest, core = cores()
        for process in psutil.Process().children(recursive=True):
            pin(process.pid, [core] if process == self._worker else rest or [core])
        pin(psutil.Process().pid, rest or [core])

    async def probe(self) -> None:
        """Let all see traffic, and find out about how many lines a second there may be."""
        for vfm in self._vfms:
            await self._map(vfm, self._plan.probe // 8, _WINDOWS[0])
        self._rate = await self._map(self._vfms[0], self._plan.probe, _WINDOWS[0])
        self._report.config["probed_lines_per_s"] = self._rate

    async def round(self, number: int) -> None:
        """Measure a batch alone, the same texts through `map`, and every load without and with a batch; every other round the
        other way round."""
        steps: list[Callable[[], Awaitable[None]]] = [
            self._alone,
            *(partial(self._map_all, window) for window in _WINDOWS),
        ]
        for step in steps[:: -1 if number % 2 else 1]:
            await step()
        alone = self._report.samples["alone_lines_per_s"][-1]
        for load in _LOADS[:: -1 if number % 2 else 1]:
            arrivals = poisson(
                alone * load / 100,
                _LONGEST * self._plan.seconds,
                len(self._vfms),
                self._texts[:512],
                100 * number + load,
            )
            for beside in (False, True) if number % 2 == 0 else (True, False):
                await (self._with_batch(load, arrivals) if beside else self._without(load, arrivals))

    def _lines(self, load: int) -> int:
        """Return how many lines take as long as is planned beside a load."""
        return max(8, round(self._rate * (1 - load / 100) * self._plan.seconds))

    async def _alone(self) -> None:
        lines = self._lines(0)
        await asyncio.sleep(_LULL_S)
        batch, seconds = await self._batch(lines)
        self._report.add({"alone_lines_per_s": lines / seconds})
        assert batch.counts.completed == lines

    async def _map_all(self, window: int) -> None:
        self._report.add({f"map_{window}_per_s": await self._map(self._vfms[0], self._lines(0), window)})

    async def _batch(self, lines: int) -> tuple[AsyncBatch, float]:
        """Send a batch and wait for its end; return it, and the seconds that it took."""
        begun = time.perf_counter()
        batch = await self._client.batches.submit(self._some(lines), vfm=self._vfms[0])
        await batch.wait()
        return batch, time.perf_counter() - begun

    def _some(self, count: int) -> list[str]:
        return [self._texts[i % len(self._texts)] for i in range(count)]

    async def _map(self, vfm: str, count: int, window: int) -> float:
        """Run texts through `map`; return how many a second were answered."""
        begun = time.perf_counter()
        async for _ in self._client.map(vfm, self._some(count), window=window):
            pass
        return count / (time.perf_counter() - begun)

    async def _without(self, load: int, arrivals: Sequence[Arrival]) -> None:
        begun, busy_s = time.perf_counter(), self._busy_s()
        async with self._interactive(arrivals) as waits:
            await asyncio.sleep(self._plan.seconds)
            passed, busy_s = time.perf_counter() - begun, self._busy_s() - busy_s
        self._report.add({f"busy_without_at_{load}": busy_s / passed})
        self._add(load, "without", waits)

    def _busy_s(self) -> float:
        """Return the seconds for which the worker's one thread that computes has run."""
        return sum(self._worker.cpu_times()[:2])

    async def _with_batch(self, load: int, arrivals: Sequence[Arrival]) -> None:
        lines = self._lines(load)
        async with self._interactive(arrivals) as waits:
            batch, seconds = await self._batch(lines)
        self._add(load, "with", waits)
        assert batch.counts.completed == lines
        self._report.add({f"lines_per_s_at_{load}": lines / seconds})

    def _add(self, load: int, how: str, waits: Sequence[float | None]) -> None:
        answered = [wait for wait in waits if wait is not None]
        self._report.add(
            {
                f"p50_{how}_at_{load}_s": float(np.percentile(answered, 50)),
                f"p99_{how}_at_{load}_s": float(np.percentile(answered, 99)),
                f"interactive_429_{how}_at_{load}": len(waits) - len(answered),
            }
        )

    @asynccontextmanager
    async def _interactive(self, arrivals: Sequence[Arrival]) -> AsyncIterator[list[float | None]]:
        """Send arrivals when they are due until the block ends; then the list has the seconds from due to answer of each, None
        for one that was refused (429)."""
        waits: list[float | None] = []
        running: list[asyncio.Task[None]] = []
        begun = time.perf_counter()

        async def one(arrival: Arrival) -> None:
            try:
                await self._client.infer(self._vfms[arrival.task], arrival.text)
                waits.append(time.perf_counter() - begun - arrival.at)
            except Busy:
                waits.append(None)

        async def send() -> None:
            for arrival in arrivals:
                await asyncio.sleep(max(0.0, begun + arrival.at - time.perf_counter()))
                running.append(asyncio.create_task(one(arrival)))

        sending = asyncio.create_task(send())
        try:
            yield waits
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            await asyncio.gather(*running)

    async def upload(self) -> None:
        """Send a large file; add by how many MiB the gateway grew meanwhile."""
        before = peak = self._gateway.memory_info().rss

        async def content() -> AsyncIterator[bytes]:
            nonlocal peak
            for _ in range(self._plan.upload // _BLOCK):
                yield b" " * _BLOCK
                peak = max(peak, self._gateway.memory_info().rss)

        async with httpx.AsyncClient(base_url=self._url, timeout=300) as http:
            sent = await http.post("/v1/files?purpose=batch&filename=large.jsonl", content=content())
            sent.raise_for_status()
            peak = max(peak, self._gateway.memory_info().rss)
            (await http.delete(f"/v1/files/{sent.json()['id']}")).raise_for_status()
        self._report.add({"upload_rss_mib": (peak - before) / 2**20})

    async def list_open(self, rounds: int) -> None:
        """Make many batches that stay open, for the worker stands still; add the seconds that it takes to list them."""
        self._worker.suspend()
        at_once = asyncio.Semaphore(16)

        async def make() -> None:
            async with at_once:
                await self._client.batches.submit(["a text"], vfm=self._vfms[1])

        try:
            await asyncio.gather(*(make() for _ in range(self._plan.listed)))
            for _ in range(rounds):
                begun = time.perf_counter()
                found = await self._client.batches.list(self._plan.listed)
                self._report.add({"list_1000_s": time.perf_counter() - begun})
                assert len(found) == self._plan.listed
                assert not any(batch.info.ended for batch in found)
        finally:
            self._worker.resume()


def _process(module: str) -> psutil.Process:
    """Return the process below this one that runs a module."""
    return next(p for p in psutil.Process().children(recursive=True) if module in p.cmdline())


@asynccontextmanager
async def _opened(report: Report, plan: Plan, folder: Path) -> AsyncIterator[Bench]:
    size = SIZES[report.options.more.backbone]
    tasks = Tasks(folder, size, 2)
    backbone = {"name": "shared", "model": str(tasks.base), "pass_units": size.pass_units}
    worker = {"device": "cpu", "threads": 1, "lease_ms": LEASE_MS, "offline_slice_ms": report.options.more.slice_ms}
    config = write_fleet(
        folder / "fleet.toml", {"backbone": backbone, "worker": worker}, artifacts=str(folder / "artifacts")
    )
    with LocalFleet(config, port=0, data=folder / "data") as fleet:
        async with AsyncClient(fleet.gateway_url, retries=0) as client:
            packages = [tasks.package(i, f"vfm-{i}", "shared", adapter=True) for i in range(2)]
            bench = Bench(report, plan, fleet, client, await deploy(client, packages))
            bench.place()
            yield bench


async def _run(report: Report, plan: Plan) -> None:
    with tempfile.TemporaryDirectory(prefix="fmplex-offline-") as folder:
        async with _opened(report, plan, Path(folder)) as bench:
            await bench.probe()
            without_pauses()
            for number in range(report.options.rounds):
                await bench.round(number)
                await bench.upload()
            await bench.list_open(report.options.rounds)


def run(report: Report) -> None:
    """Measure everything on one fleet."""
    options = report.options
    plan = Plan(12.0, 1024, GatewaySpec().max_file_bytes, 1000)
    if options.quick:
        plan = Plan(0.8, 64, 1 << 22, 20)
    report.config |= {
        "backbone": options.more.backbone,
        "loads": _LOADS,
        "slice_ms": options.more.slice_ms,
        "map_windows": _WINDOWS,
        "plan": plan._asdict(),
        "cores": f"worker: one; broker, gateway and callers: the rest of {os.cpu_count()}",
    }
    run_async(_run(report, plan))
    refused = [name for name in report.samples if name.startswith("interactive_429_")]
    report.samples["interactive_429"] = [
        float(sum(report.samples[name][i] for name in refused)) for i in range(options.rounds)
    ]


def ratios(report: Report) -> Ratios:
    """Compare what interactive callers see, and what the batch gets, at the worse load; and a batch to `map`."""
    waits, slice_s = [], report.options.more.slice_ms / 1000
    for load in _LOADS:
        pairs = zip(
            report.samples.get(f"p99_with_at_{load}_s", ()),
            report.samples.get(f"p99_without_at_{load}_s", ()),
            strict=False,
        )
        waits.append([beside / (alone + slice_s) for beside, alone in pairs])
    used = [
        [share / (1 - load / 100) for share in report.ratio(f"lines_per_s_at_{load}", "alone_lines_per_s")]
        for load in _LOADS
    ]
    maps = [report.ratio("alone_lines_per_s", f"map_{window}_per_s") for window in _WINDOWS]
    return {
        "interactive_p99_with_batch": worst(waits),
        "idle_capacity_used": worst(used, min),
        "batch_over_map": worst(maps, min),
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", choices=list(SIZES), default="bert_width", help="shape of the backbone")
    slice_ms = WorkerSpec().offline_slice_ms
    parser.add_argument("--slice-ms", type=float, default=slice_ms, help="what an offline pass may take beside calls")


if __name__ == "__main__":
    main(Benchmark("offline", run, ratios, __doc__ or "", rounds=4, arguments=_arguments))
