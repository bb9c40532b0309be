"""What it costs to keep only some of many vFMs on the device.

2,000 vFMs, each with a LoRA and a head of its own, on the real MiniLM; traffic over them by Zipf's law (the k-th vFM is asked
in proportion to 1/k). One worker may keep 100 of them on the device, the other all; the same jobs in turn, on the same
cores. `ratios.throughput_over_all_resident`: jobs a second with many callers at once. `ratios.p99_over_all_resident`: p99
latency at a Poisson load of half of that rate, of the jobs whose version was resident, over the p99 of all jobs where all
are. Files that are not in the worker's host memory (a quarter of all fit) come from the artifact store on local disk.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import uvloop
from safetensors.numpy import save

from benchmarks.fleet import LEASE_MS, Workers
from benchmarks.harness import Options, Report, cpu_name, main, ratio, without_pauses
from benchmarks.models import MINILM, texts
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD, Package, make_package
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.fleet import look
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import Reply
from tests.support.packages import head_weights, lora

_RANK = 4
_CALLERS = 128
_LOAD = 0.5  # of the throughput with all resident
_REPORTS_S = 3.0
_OVERHEAD = 8192  # bytes a version takes beside its tensors


def package(number: int, backbone: str) -> Package:
    """A classification vFM with random weights of its own."""
    spec = {
        "name": f"{backbone}-{number:05}",
        "backbone": backbone,
        "head": {"kind": "classification", "labels": "abcd"},
    }
    spec["head"] = {"kind": "classification", "labels": list("abcd")}
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK, "target_modules": ["query", "value"]}
    files = {
        HEAD: save(head_weights(4, number)),
        ADAPTER_CONFIG: json.dumps(config).encode(),
        ADAPTER_WEIGHTS: save(lora(_RANK, seed=number)),
    }
    return make_package(parse(VfmSpec, spec), files)


class Fleet:
    """Two workers on one broker, of two backbones with the same weights: `budget` and `resident`."""

    def __init__(self, folder: Path, url: str, vfms: int, budget: int) -> None:
        self.folder = folder
        self.url = url
        self.vfms = vfms
        self.budget = budget
        self.store = ArtifactStore(str(folder / "artifacts"))
        self.version_bytes = package(0, "x").nbytes + _OVERHEAD
        self.workers = {name: Workers(folder, url) for name in ("budget", "resident")}

    async def start(self, session: QueueClient) -> None:
        limits = {"budget": (self.budget, self.vfms // 4), "resident": (2 * self.vfms, 0)}
        for name, workers in self.workers.items():
            device, host = (n * self.version_bytes for n in limits[name])
            workers.start(self._config(name, device, host))
            await workers.ready(session.registry)
        deployer = Deployer(session.registry, self.store)
        for name in self.workers:
            for start in range(0, self.vfms, 32):
                numbers = range(start, min(start + 32, self.vfms))
                made = await asyncio.to_thread(lambda name=name, ns=numbers: [package(n, name) for n in ns])
                await asyncio.gather(*(deployer.deploy(one) for one in made))

    def _config(self, name: str, device_bytes: int, host_bytes: int) -> Path:
        path = self.folder / f"{name}.toml"
        path.write_text(
            f"artifacts = {json.dumps(self.store.url)}\n"
            f'[backbone]\nname = "{name}"\nmodel = "{MINILM}"\nmax_tokens = 256\npass_units = 1024\n'
            f'[worker]\ndevice = "cpu"\nthreads = 1\nlease_ms = {LEASE_MS}\n'
            f"[worker.residency]\ndevice_bytes = {device_bytes}\nhost_bytes = {host_bytes}\n"
        )
        return path

    @contextmanager
    def only(self, name: str) -> Iterator[None]:
        """The other worker is frozen."""
        others = [workers for other, workers in self.workers.items() if other != name]
        for workers in others:
            workers.freeze()
        yield
        for workers in others:
            workers.thaw()

    def stop(self) -> None:
        for workers in self.workers.values():
            workers.stop()


class Bench:
    def __init__(self, session: QueueClient, fleet: Fleet, jobs: int, seconds: float, zipf: float) -> None:
        self._session = session
        self._fleet = fleet
        self._jobs = jobs
        self._seconds = seconds
        self._texts = texts(997)
        shares = 1 / np.arange(1, fleet.vfms + 1) ** zipf
        self._shares = shares / shares.sum()
        self._rng = np.random.default_rng(7)
        names = [*fleet.workers]
        self.rate = 0.0
        self.samples: dict[str, list[float]] = {f"{n}_jobs_per_s": [] for n in names}
        self.samples |= {f"{n}_p99_ms": [] for n in names} | {f"{n}_p50_ms": [] for n in names}
        self.samples |= {"budget_hit_rate": [], "budget_miss_p50_ms": [], "budget_miss_p99_ms": []}

    def draw(self, count: int) -> list[tuple[int, str]]:
        """vFM and text of each job."""
        which = self._rng.choice(len(self._shares), count, p=self._shares)
        return [(int(n), self._texts[i % len(self._texts)]) for i, n in enumerate(which)]

    async def _one(self, backbone: str, job: tuple[int, str]) -> Reply:
        pending = await self._session.submit(f"{backbone}-{job[0]:05}", [job[1]])
        reply = await pending[0].result()
        if reply.error is not None:
            raise reply.error
        return reply

    async def saturate(self, backbone: str, jobs: Sequence[tuple[int, str]]) -> float:
        """Jobs a second when so many callers ask as fast as they are answered."""
        left = iter(jobs)

        async def caller() -> None:
            for job in left:
                await self._one(backbone, job)

        begun = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        return len(jobs) / (time.perf_counter() - begun)

    async def poisson(self, backbone: str, jobs: Sequence[tuple[int, str]], gaps: Sequence[float]) -> None:
        """Latencies from when a job was due, of jobs that arrive by chance."""
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
        self.samples[f"{backbone}_p50_ms"].append(float(np.percentile(resident, 50)))
        self.samples[f"{backbone}_p99_ms"].append(float(np.percentile(resident, 99)))
        if backbone == "budget":
            self.samples["budget_hit_rate"].append(len(resident) / len(seen))
            self.samples["budget_miss_p50_ms"].append(float(np.percentile(waited, 50)))
            self.samples["budget_miss_p99_ms"].append(float(np.percentile(waited, 99)))

    async def round(self, names: Sequence[str]) -> None:
        """The same jobs for every variant, first all at once and then by chance."""
        burst = self.draw(self._jobs)
        for name in names:
            with self._fleet.only(name):
                self.samples[f"{name}_jobs_per_s"].append(await self.saturate(name, burst))
        rate = _LOAD * self.samples["resident_jobs_per_s"][-1]
        jobs = self.draw(int(rate * self._seconds))
        gaps = self._rng.exponential(1 / rate, len(jobs)).tolist()
        for name in names:
            with self._fleet.only(name):
                await self.poisson(name, jobs, gaps)


async def _run(options: Options) -> Report:
    vfms, budget, jobs, seconds = (120, 20, 300, 3.0) if options.quick else (2000, 100, 2000, 12.0)
    rounds, zipf = options.rounds or (2 if options.quick else 5), 1.0
    with EmbeddedServer() as server, TemporaryDirectory() as folder:
        session = QueueClient.connect(server.url)
        fleet = Fleet(Path(folder), server.url, vfms, budget)
        try:
            await fleet.start(session)
            bench = Bench(session, fleet, jobs, seconds, zipf)
            for name in fleet.workers:  # both have seen traffic before anything is measured
                await bench.saturate(name, bench.draw(jobs))
            without_pauses()
            for number in range(rounds):
                await bench.round(["budget", "resident"] if number % 2 else ["resident", "budget"])
            await asyncio.sleep(_REPORTS_S)  # who has just been thawed has yet to report
            view = await look(session.redis, session.registry)
        finally:
            fleet.stop()
            await session.close()
    s = bench.samples
    workers: dict[str, Any] = {w.backbone: w for w in view.workers}
    loads = workers["budget"].residency
    return Report(
        benchmark="residency",
        ratios={
            "throughput_over_all_resident": ratio(s, "budget_jobs_per_s", "resident_jobs_per_s"),
            "p99_over_all_resident": ratio(s, "budget_p99_ms", "resident_p99_ms"),
        },
        samples=s,
        config={"vfms": vfms, "budget_versions": budget, "zipf_exponent": zipf, "lora_rank": _RANK,
                "version_bytes": fleet.version_bytes, "callers": _CALLERS, "load": _LOAD, "rounds": rounds,
                "resident_versions": {name: w.residency.versions for name, w in workers.items()},
                "device_bytes": {name: w.residency.device_bytes for name, w in workers.items()},
                "device_seconds": {name: w.busy_s for name, w in workers.items()},
                "tokens_per_pass": {name: w.pass_units / max(1, w.passes) for name, w in workers.items()},
                "loads": loads.loads, "mean_load_ms": 1000 * loads.load_s / max(1, sum(loads.loads.values()))},
        device=cpu_name(),
    )  # fmt: skip


def run(options: Options) -> Report:
    return uvloop.run(_run(options))


if __name__ == "__main__":
    main(run, __doc__ or "")
