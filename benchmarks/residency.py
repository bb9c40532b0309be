"""The cost of keeping only some of many vFMs on the device.

2,000 vFMs, each with a LoRA and a head of its own, on the real MiniLM; traffic over them by Zipf's law (the k-th vFM is asked
in proportion to 1/k). One worker may keep 100 of them on the device, the other all; the same jobs in turn, on the same
cores. `ratios.throughput_over_all_resident`: jobs a second with many callers at once. `ratios.p99_over_all_resident`: p99
latency at a Poisson load of half of that rate, of the jobs whose version was resident, over the p99 of all jobs where all
are. Files that are not in the worker's host memory (a quarter of all fit) come from the artifact store on local disk.

    python -m benchmarks.residency [--json] [--rounds N] [--quick]       (about six minutes)
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save

from benchmarks.fleet import Workers, artifact_folder, fleet_file
from benchmarks.harness import Benchmark, Ratios, Report, main, without_pauses
from benchmarks.models import MINILM, texts
from benchmarks.stopping import run_async
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD, Package, make_package
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import Reply
from fmplex_broker.wire.stats import WorkerStats
from tests.support.packages import head_weights, lora

_RANK = 4
_CALLERS = 128
_ZIPF = 1.0
_LOAD = 0.5  # of the throughput with all resident
_REPORTS_S = 3.0
_OVERHEAD = 8192  # bytes a version takes beside its tensors


def package(number: int, backbone: str) -> Package:
    """Make a classification vFM with random weights of its own."""
    spec = {
        "name": f"{backbone}-{number:05}",
        "backbone": backbone,
        "head": {"kind": "classification", "labels": list("abcd")},
    }
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK, "target_modules": ["query", "value"]}
    files = {
        HEAD: save(head_weights(4, number)),
        ADAPTER_CONFIG: json.dumps(config).encode(),
        ADAPTER_WEIGHTS: save(lora(_RANK, seed=number)),
    }
    return make_package(parse(VfmSpec, spec), files)


def _packages(numbers: Sequence[int], backbone: str) -> list[Package]:
    return [package(number, backbone) for number in numbers]


class Fleet:
    """Two workers on one broker, of two backbones with the same weights: `budget` and `resident`."""

    def __init__(self, folder: Path, url: str, vfms: int, budget: int) -> None:
        self.folder = folder
        self.url = url
        self.vfms = vfms
        self.budget = budget
        self.store = ArtifactStore(artifact_folder(folder))
        self.version_bytes = package(0, "x").nbytes + _OVERHEAD
        self.workers = {name: Workers(folder, url) for name in ("budget", "resident")}

    async def start(self, session: QueueClient) -> None:
        """Start both workers and deploy all vFMs on each."""
        limits = {"budget": (self.budget, self.vfms // 4), "resident": (2 * self.vfms, 0)}
        for name, workers in self.workers.items():
            device, host = (n * self.version_bytes for n in limits[name])
            workers.start(self._config(name, device, host))
            await workers.ready(session.registry)
        deployer = Deployer(session.registry, self.store)
        for name in self.workers:
            for start in range(0, self.vfms, 32):
                numbers = range(start, min(start + 32, self.vfms))
                made = await asyncio.to_thread(_packages, numbers, name)
                await asyncio.gather(*(deployer.deploy(one) for one in made))

    def _config(self, name: str, device_bytes: int, host_bytes: int) -> Path:
        residency = {"device_bytes": device_bytes, "host_bytes": host_bytes}
        return fleet_file(self.folder, name, MINILM, pass_units=1024, max_tokens=256, residency=residency)

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Freeze the other worker for a block."""
        others = [workers for other, workers in self.workers.items() if other != name]
        for workers in others:
            workers.freeze()
        yield
        for workers in others:
            workers.thaw()

    def stop(self) -> None:
        """Stop both workers."""
        for workers in self.workers.values():
            workers.stop()


class Bench:
    """Traffic for both workers, the same for each, by Zipf's law."""

    def __init__(self, report: Report, session: QueueClient, fleet: Fleet, jobs: int, seconds: float) -> None:
        self._report = report
        self._session = session
        self._fleet = fleet
        self._jobs = jobs
        self._seconds = seconds
        self._texts = texts(997)
        shares = 1 / np.arange(1, fleet.vfms + 1) ** _ZIPF
        self._shares = shares / shares.sum()
        self._rng = np.random.default_rng(7)

    def draw(self, count: int) -> list[tuple[int, str]]:
        """Draw vFM and text of each job."""
        which = self._rng.choice(len(self._shares), count, p=self._shares)
        return [(int(n), self._texts[i % len(self._texts)]) for i, n in enumerate(which)]

    async def _one(self, backbone: str, job: tuple[int, str]) -> Reply:
        pending = await self._session.submit(f"{backbone}-{job[0]:05}", [job[1]])
        reply = await pending[0].result()
        if reply.error is not None:
            raise reply.error
        return reply

    async def saturate(self, backbone: str, jobs: Sequence[tuple[int, str]]) -> float:
        """Return jobs a second when many callers ask as fast as they are answered."""
        left = iter(jobs)

        async def caller() -> None:
            for job in left:
                await self._one(backbone, job)

        begun = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        return len(jobs) / (time.perf_counter() - begun)

    async def poisson(self, backbone: str, jobs: Sequence[tuple[int, str]], gaps: Sequence[float]) -> dict[str, float]:
        """Measure latencies from when a job was due, of jobs that arrive by chance."""
        begun = time.perf_counter() + 0.05

        async def one(job: tuple[int, str], due: float) -> tuple[float, bool]:
            reply = await self._one(backbone, job)
            return (time.perf_counter() - begun - due) * 1000, reply.load_ms > 0

        running, due = [], 0.0
        for job, gap in zip(jobs, gaps, strict=True):
            due += gap
            await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
            running.append(asyncio.create_task(one(job, due)))
        seen = await asyncio.gather(*running)
        resident, waited = ([ms for ms, loaded in seen if loaded is missed] for missed in (False, True))
        figures = {f"{backbone}_p{q}_ms": float(np.percentile(resident, q)) for q in (50, 99)}
        if backbone == "budget":
            figures |= {"budget_hit_rate": len(resident) / len(seen)}
            figures |= {f"budget_miss_p{q}_ms": float(np.percentile(waited, q)) for q in (50, 99)}
        return figures

    async def round(self, names: Sequence[str]) -> None:
        """Send the same jobs to every worker, first all at once and then by chance."""
        burst = self.draw(self._jobs)
        for name in names:
            with self._fleet.only(name):
                self._report.add({f"{name}_jobs_per_s": await self.saturate(name, burst)})
        rate = _LOAD * self._report.samples["resident_jobs_per_s"][-1]
        jobs = self.draw(int(rate * self._seconds))
        gaps = self._rng.exponential(1 / rate, len(jobs)).tolist()
        for name in names:
            with self._fleet.only(name):
                self._report.add(await self.poisson(name, jobs, gaps))


async def _measure(report: Report, bench: Bench, fleet: Fleet, session: QueueClient) -> None:
    await fleet.start(session)
    for name in fleet.workers:  # both have seen traffic before anything is measured
        await bench.saturate(name, bench.draw(report.config["jobs"]))
    without_pauses()
    for number in range(report.options.rounds):
        await bench.round(["budget", "resident"] if number % 2 else ["resident", "budget"])
    await asyncio.sleep(_REPORTS_S)  # who has just been thawed has yet to report
    view = await read_fleet(session.redis, session.registry)
    report.config |= _fleet_config({worker.backbone: worker for worker in view.workers})


def _fleet_config(workers: Mapping[str, WorkerStats]) -> dict[str, Any]:
    """Return what the workers say of themselves at the end."""
    loads = workers["budget"].residency
    return {
        "resident_versions": {name: w.residency.versions for name, w in workers.items()},
        "device_bytes": {name: w.residency.device_bytes for name, w in workers.items()},
        "device_seconds": {name: w.busy_s for name, w in workers.items()},
        "tokens_per_pass": {name: w.pass_units / max(1, w.passes) for name, w in workers.items()},
        "loads": loads.loads,
        "mean_load_ms": 1000 * loads.load_s / max(1, sum(loads.loads.values())),
    }


async def _run(report: Report, budget: int, seconds: float) -> None:
    with EmbeddedServer() as server, TemporaryDirectory(prefix="fmplex-residency-") as folder:
        session = QueueClient.connect(server.url)
        fleet = Fleet(Path(folder), server.url, report.config["vfms"], budget)
        report.config["version_bytes"] = fleet.version_bytes
        bench = Bench(report, session, fleet, report.config["jobs"], seconds)
        try:
            await _measure(report, bench, fleet, session)
        finally:
            fleet.stop()
            await session.close()


def run(report: Report) -> None:
    """Measure both workers on a broker of their own."""
    quick = report.options.quick
    vfms, budget, jobs, seconds = (40, 8, 100, 1.0) if quick else (2000, 100, 2000, 12.0)
    report.config |= {
        "vfms": vfms, "budget_versions": budget, "zipf_exponent": _ZIPF, "lora_rank": _RANK, "jobs": jobs,
        "callers": _CALLERS, "load": _LOAD, "rounds": report.options.rounds,
    }  # fmt: skip
    run_async(_run(report, budget, seconds))


def ratios(report: Report) -> Ratios:
    """Compare the worker with a budget to the one where all are resident."""
    return {
        "throughput_over_all_resident": report.ratio("budget_jobs_per_s", "resident_jobs_per_s"),
        "p99_over_all_resident": report.ratio("budget_p99_ms", "resident_p99_ms"),
    }


if __name__ == "__main__":
    main(Benchmark("residency", run, ratios, __doc__ or "", rounds=5))
