"""The real part of `benchmarks.coserving`: two workers of one backbone on one core, one awake at a time, of which one takes
tuning jobs; and a process of `fmplex fit`, niced, on the same core."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from benchmarks.coserving_beside import Fit
from benchmarks.coserving_kinds import Kind, Served
from benchmarks.fleet import LEASE_MS, cores, pin
from benchmarks.harness import Report, turns, without_pauses
from fmplex import AsyncClient, AsyncTune
from fmplex.local import LocalFleet
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.stats import TrainingStats, WorkerStats

_PLAIN, _TUNED = "plain", "tuned"
_SPEND = 0.8
_START_S = 120.0
_TICK_S = 0.05
_NO_JOB_LOAD = 60  # % of the highest rate, for p99


class Plan:
    """The amount of what is measured. `jobs`: that wait from the beginning; `seconds`: of arrivals a way and load; `p99_s`: of
    those whose p99 is compared, of which two hundred would be too few."""

    def __init__(self, quick: bool, kind: Kind) -> None:
        encoder = kind.name == "encoder"
        self.jobs = (24 if encoder else 4) if quick else (200 if encoder else 8)
        self.seconds = 0.8 if quick else 2.5
        self.p99_s = 0.8 if quick else 6.0
        self.loads: tuple[int, ...] = (50,) if quick or not encoder else (20, 50, 80)


def _asked(backbone: str) -> str:
    """Name the vFM on a backbone."""
    return f"asked-{backbone}"


def fleet_text(kind: Kind, model: Path, folder: Path) -> str:
    """Return a fleet file: the same backbone twice, of which one is trained on too."""
    lines = [f"artifacts = {json.dumps(str(folder / 'artifacts'))}", "[worker]", 'device = "cpu"', "threads = 1",
             f"lease_ms = {LEASE_MS}", f"kv_bytes = {1 << 27}"]  # fmt: skip
    for name in (_PLAIN, _TUNED):
        lines += [
            "[[backbones]]",
            f'name = "{name}"',
            f"model = {json.dumps(str(model))}",
            f"pass_units = {kind.pass_units}",
        ]
        if name == _TUNED:
            lines += ["[backbones.worker.tuning]", "enabled = true", f"spend = {_SPEND}"]
    return "\n".join(lines) + "\n"


class Bench:
    """One fleet of a kind, and what is measured on it."""

    def __init__(self, report: Report, kind: Kind, fleet: LocalFleet, prefix: str) -> None:
        self._report, self._kind, self._prefix = report, kind, prefix
        self._plan = Plan(report.options.quick, kind)
        self._workers = {name: psutil.Process(fleet.processes[f"worker-{name}-0"].pid) for name in (_PLAIN, _TUNED)}
        self.client = AsyncClient(fleet.broker_url, artifacts=fleet.artifacts)
        self.gateway = AsyncClient(fleet.gateway_url)
        self.session = QueueClient.connect(fleet.broker_url)
        self._redis = open_redis(fleet.broker_url)
        self._registry = Registry(self._redis, Scripts(self._redis))
        self._cores = cores()
        self._peak: dict[str, int] = {}
        self._rate = 0.0
        self._training = False  # whether there is a job

    async def close(self) -> None:
        """Close all connections; let the workers go on, so that they can end."""
        for process in self._workers.values():
            process.resume()
        pin(psutil.Process().pid, self._cores)
        for what in (self.client, self.gateway, self.session):
            await what.close()
        await self._redis.aclose()

    async def begin(self) -> None:
        """Give the workers a core of their own, deploy what is asked, and see all of it once."""
        *rest, core = self._cores
        of_workers = {process.pid for process in self._workers.values()}
        for process in psutil.Process().children(recursive=True):
            pin(process.pid, [core] if process.pid in of_workers else rest or [core])
        pin(psutil.Process().pid, rest or [core])
        for name in self._workers:
            await self.client.vfms.deploy(self._kind.vfm(_asked(name), name))
            await self.client.vfms.update(_asked(name), slo=self._kind.slo)
            await self._kind.most(self, _asked(name), max(4, self._plan.jobs // 8))
        without_pauses()
        for process in self._workers.values():
            process.suspend()

    @asynccontextmanager
    async def _awake(self, name: str) -> AsyncIterator[None]:
        """Let one worker run until the block ends, and note how much memory it takes at most."""
        process = self._workers[name]
        process.resume()
        watching = asyncio.create_task(self._watch(name, process))
        try:
            await self._kind.most(self, _asked(name), 1)  # what it waited for when it was stopped has timed out
            if name == _TUNED and self._training:
                await self._goes_on()
            yield
        finally:
            watching.cancel()
            process.suspend()

    async def _goes_on(self) -> None:
        """Wait until units run."""
        begun = now = await self._stats(0.0)
        while _units_s(now) <= _units_s(begun):
            now = await self._stats(now.uptime_s)

    async def _watch(self, name: str, process: psutil.Process) -> None:
        while True:
            self._peak[name] = max(self._peak.get(name, 0), int(process.memory_full_info().uss))
            await asyncio.sleep(0.5)

    def _add(self, figures: dict[str, float]) -> None:
        self._report.add({f"{self._prefix}real_{name}": value for name, value in figures.items()})

    # ---- without a job ----

    async def no_job(self, number: int) -> None:
        """Measure a worker that takes tuning jobs and has none, beside one that takes none."""
        for _, name in turns((_PLAIN, _TUNED)[:: -1 if number % 2 else 1], 1):
            async with self._awake(name):
                most = await self._kind.most(self, _asked(name), self._plan.jobs)
                if number < 0:
                    self._rate = most
                    continue
                self._rate = self._rate or most
                rate = self._rate * _NO_JOB_LOAD / 100
                served = await self._kind.serve(self, _asked(name), rate, self._plan.p99_s, number)
                p99 = float(np.percentile(served.waits, 99))
                self._add({f"no_job_{name}_per_s": most, f"no_job_{name}_p99_s": p99})

    # ---- with one ----

    async def train(self) -> AsyncTune:
        """Order the training; wait until its units run."""
        async with self._awake(_TUNED):
            job = await self.gateway.tune(
                self._kind.examples(), model=_TUNED, publish={"how": "none"}, **self._kind.order
            )
            end = time.monotonic() + _START_S
            while not _training(await self._stats(0.0)).units["backward"]:
                await job.refresh()
                if job.info.ended or time.monotonic() > end:
                    raise RuntimeError(f"the training did not begin: {job.info}")
                await asyncio.sleep(_TICK_S)
        self._training = True
        return job

    async def _stats(self, after_s: float) -> WorkerStats:
        """Wait for the next figures of the worker that trains, of a time after it had run for so long."""
        async with asyncio.timeout(_START_S):
            while True:
                for stats in (await read_fleet(self._redis, self._registry)).workers:
                    if stats.backbone == _TUNED and stats.uptime_s > after_s:
                        return stats
                await asyncio.sleep(_TICK_S)

    async def _share(self, during: asyncio.Future[Any]) -> float:
        """Return the part of time for which units ran, between the first and the last figures while something goes on."""
        begun = last = await self._stats((await self._stats(0.0)).uptime_s)
        while not during.done() or last is begun:
            last = await self._stats(last.uptime_s)
        return (_units_s(last) - _units_s(begun)) / (last.uptime_s - begun.uptime_s)

    async def alone(self, fit: Fit) -> None:
        """Measure both ways to train with nothing beside them."""
        async with self._awake(_TUNED):
            share = await self._share(asyncio.ensure_future(asyncio.sleep(self._plan.seconds)))
        with fit.awake():
            begun, cpu = time.monotonic(), fit.cpu_s
            await asyncio.sleep(min(2.0, self._plan.seconds))
            self._add({"fit_alone": (fit.cpu_s - cpu) / (time.monotonic() - begun)})
            self._peak["fit"] = max(self._peak.get("fit", 0), int(fit.seen.memory_full_info().uss))
        self._add({"ours_alone": share})

    async def load(self, load: int, fit: Fit, number: int) -> None:
        """Serve the same arrivals without training, with ours, and beside the other process."""
        ways = ("inference", "ours", "beside")
        for _, way in turns(ways[:: -1 if number % 2 else 1], 1):
            async with self._awake(_TUNED if way == "ours" else _PLAIN):
                serving = asyncio.ensure_future(self._serve(_TUNED if way == "ours" else _PLAIN, load, number))
                share = 0.0
                if way == "ours":
                    share = await self._share(serving)
                elif way == "beside":
                    with fit.awake():
                        begun, cpu = time.monotonic(), fit.cpu_s
                        await asyncio.wait({serving})
                        share = (fit.cpu_s - cpu) / (time.monotonic() - begun)
                        self._peak["fit"] = max(self._peak.get("fit", 0), int(fit.seen.memory_full_info().uss))
                self._served(f"{way}_at_{load}", await serving, share)

    async def _serve(self, name: str, load: int, number: int) -> Served:
        rate = self._rate * load / 100
        return await self._kind.serve(self, _asked(name), rate, self._plan.seconds, 100 * number + load)

    def _served(self, where: str, served: Served, share: float) -> None:
        self._add(
            {
                f"{where}_share": share,
                f"{where}_attained": _within(served.waits, served.target),
                f"{where}_attained_by_mean": _within(served.means, served.target),
                f"{where}_p50_s": float(np.percentile(served.firsts, 50)),
                f"{where}_p99_s": float(np.percentile(served.waits, 99)),
            }
        )

    def memory(self) -> None:
        """Compare the most memory that one worker took which serves and trains to that of two processes."""
        both = self._peak[_PLAIN] + self._peak["fit"]
        self._add({"memory_ours_bytes": self._peak[_TUNED], "memory_separate_bytes": both})

    async def run(self, model: Path, folder: Path) -> None:
        """Measure everything."""
        await self.begin()
        for number in range(-1, self._report.options.rounds):
            await self.no_job(number)
        fit = Fit(self._kind, model, folder, self._cores[-1])
        try:
            job = await self.train()
            await fit.begun()
            for number in range(self._report.options.rounds):
                await self.alone(fit)
                for load in self._plan.loads[:: -1 if number % 2 else 1]:
                    await self.load(load, fit, number)
            self.memory()
            self._report.config[f"{self._prefix}real_most_per_s"] = self._rate
            await job.cancel()
        finally:
            fit.stop()


def _training(stats: WorkerStats) -> TrainingStats:
    assert stats.training is not None
    return stats.training


def _units_s(stats: WorkerStats) -> float:
    """Return the device seconds of all units so far."""
    return sum(_training(stats).seconds.values())


def _within(seconds: Sequence[float], target: float) -> float:
    return sum(took <= target for took in seconds) / len(seconds) if seconds else 1.0


async def measure(report: Report, kind: Kind, model: Path, prefix: str) -> None:
    """Measure a kind on a fleet of its own; names of samples begin with `prefix`."""
    with TemporaryDirectory(prefix="fmplex-coserving-") as place:
        folder = Path(place)
        config = folder / "fleet.toml"
        config.write_text(fleet_text(kind, model, folder))
        with LocalFleet(config, port=0, data=folder / "data") as fleet:
            bench = Bench(report, kind, fleet, prefix)
            try:
                await bench.run(model, folder)
            finally:
                await bench.close()
