"""What sharing is worth: 16 tasks on one backbone, against a process per task, a copy per task, and one task a pass.

Every way to serve has the same broker, client, texts, tokenizer, packing and pass budget, and all its worker processes share
one core with one thread each (the device); broker and client have the other cores. Copies have the tasks' LoRAs merged.
`ratios`: FMplex / rival. `latency_*`: mean, open loop, both at 90 % of the rival's own maximum rate (in `samples` also p50,
p99, and at 50 %). `max_rate_*`: jobs a second when all wait from the beginning. `memory_*`: unique memory (USS).

    python -m benchmarks.sharing [--json] [--rounds N] [--quick] [--backbone NAME] [--seconds S]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import uvloop

from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.harness import Options, Report, cpu_name, interleave_async, main, ratio
from benchmarks.models import SIZES, Size, Tasks, texts
from benchmarks.openloop import latencies, poisson, saturated
from fmplex import AsyncClient
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.registry import Registry

_RIVALS = ("processes", "colocated", "one_at_a_time")
_LOADS = (50, 90)  # % of the rival's maximum rate
_WINDOW = 16  # passes' worth of jobs in hand: one task a pass must find enough of its own among them
_WARM_UP = 0.2  # of the arrivals, at the beginning: queues are still filling


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    size: Size
    tasks: int
    jobs: int  # of one saturated run
    seconds: float  # of one run of arrivals
    rounds: int


@dataclass
class Way:
    """One way to serve the tasks: its processes, and the name of each task's vFM."""

    name: str
    workers: Workers
    vfms: list[str] = field(default_factory=list)


class Bench:
    """The fleets, one rival at a time beside ours, and what was measured of them."""

    def __init__(self, plan: Plan, folder: Path, server: EmbeddedServer, client: AsyncClient) -> None:
        self._plan = plan
        self._folder = folder
        self._url = server.url
        self._client = client
        self._redis = open_redis(server.url)
        self._registry = Registry(self._redis, Scripts(self._redis))
        self._texts = texts(512)
        self._tasks = Tasks(folder, plan.size, plan.tasks)
        self._copies = self._tasks.merged_copies()
        self.samples: dict[str, list[float]] = {}
        self.difference = 0.0  # the largest, of a score, between ours and a rival's
        *rest, self._device = cores()
        self._rest = rest or [self._device]
        pin(server.pid, self._rest)

    async def run(self) -> None:
        with Workers(self._folder, self._url) as workers:
            ours = await self._open(Way("ours", workers))
            for name in _RIVALS:
                with Workers(self._folder, self._url) as others:
                    await self._against(ours, await self._open(Way(name, others)))
        await self._redis.aclose()

    async def _open(self, way: Way) -> Way:
        """Start it, deploy every task, and freeze it."""
        pin(psutil.Process().pid, [*self._rest, self._device])  # children inherit it: all may load on all cores
        count, own_process = self._plan.tasks, way.name == "processes"
        backbones = [f"{way.name}-{i}" for i in range(count)] if own_process else [way.name]
        for backbone, model in zip(backbones, self._copies, strict=False):
            match way.name:
                case "ours":
                    way.workers.start(self._file(backbone, self._tasks.base))
                case "processes":
                    way.workers.start(self._file(backbone, model))
                case "colocated":
                    copies = map(str, self._copies)
                    way.workers.start(self._file(backbone, model), "benchmarks.onetask", "--copies", *copies)
                case _:
                    model = self._tasks.another_base(backbone)
                    way.workers.start(self._file(backbone, model), "benchmarks.onetask")
        await way.workers.ready(self._registry)
        adapter = way.name in ("ours", "one_at_a_time")
        way.vfms = await deploy(
            self._client,
            [
                self._tasks.package(i, f"{way.name}-vfm-{i}", backbones[i % len(backbones)], adapter=adapter)
                for i in range(count)
            ],
        )
        way.workers.pin([self._device])
        pin(psutil.Process().pid, self._rest)
        way.workers.freeze()
        return way

    def _file(self, backbone: str, model: Path) -> Path:
        units = self._plan.size.pass_units
        return fleet_file(self._folder, backbone, model, pass_units=units, threads=1, window_passes=_WINDOW)

    async def _against(self, ours: Way, rival: Way) -> None:
        plan = self._plan
        await self._compare(ours, rival)
        rates = [f"max_rate_{way}_per_s" for way in (rival.name, f"ours_vs_{rival.name}")]

        async def saturate(way: Way, key: str) -> None:
            self._add(key, await saturated(self._client, way.vfms, self._texts, plan.jobs))

        await self._rounds(rival, ours, rates, saturate)
        rate = statistics.median(self.samples[rates[0]])
        for load in _LOADS:
            keys = [f"latency_{load}_{way}" for way in (rival.name, f"ours_vs_{rival.name}")]

            async def serve(way: Way, key: str, load: int = load) -> None:
                seed = len(self.samples.get(f"{key}_mean_s", ()))  # the same round, the same arrivals
                arrivals = poisson(rate * load / 100, plan.seconds, plan.tasks, self._texts, seed)
                waits = (await latencies(self._client, way.vfms, arrivals))[int(_WARM_UP * len(arrivals)) :]
                self._add(f"{key}_mean_s", statistics.fmean(waits))
                self._add(f"{key}_p50_s", float(np.percentile(waits, 50)))
                self._add(f"{key}_p99_s", float(np.percentile(waits, 99)))

            await self._rounds(rival, ours, keys, serve, warm_up=0)
        self.samples[f"memory_{rival.name}_bytes"] = [float(rival.workers.unique_bytes())]
        self.samples[f"memory_ours_vs_{rival.name}_bytes"] = [float(ours.workers.unique_bytes())]

    async def _rounds(
        self, rival: Way, ours: Way, keys: list[str], measure: Callable[..., Any], warm_up: int = 1
    ) -> None:
        """Both take turns; who is not measured is frozen."""

        async def turn(way: Way, key: str) -> None:
            way.workers.thaw()
            await self._ask(way)  # its connections are awake again
            await measure(way, key)
            way.workers.freeze()

        both = {way.name: lambda way=way, key=key: turn(way, key) for way, key in zip((rival, ours), keys, strict=True)}
        await interleave_async(both, self._plan.rounds, warm_up)
        for key in keys if warm_up else ():
            self.samples[key] = self.samples[key][warm_up:]

    async def _ask(self, way: Way) -> list[dict[str, float]]:
        """The scores that every task gives to the same text."""
        return [(await self._client.infer(vfm, self._texts[0])).output["scores"] for vfm in way.vfms]

    async def _compare(self, ours: Way, rival: Way) -> None:
        """Both must serve the same thing, or their speeds say nothing."""
        answers = []
        for way in (ours, rival):
            way.workers.thaw()
            answers.append(await self._ask(way))
            way.workers.freeze()
        pairs = [(a[label], b[label]) for a, b in zip(*answers, strict=True) for label in a]
        self.difference = max(self.difference, *(abs(a - b) for a, b in pairs))
        if self.difference > 1e-4:
            raise RuntimeError(f"{rival.name} answers something else: a score is off by {self.difference:.2g}")

    def _add(self, key: str, value: float) -> None:
        self.samples.setdefault(key, []).append(value)


async def _run(plan: Plan) -> Bench:
    with tempfile.TemporaryDirectory(prefix="fmplex-sharing-") as folder, EmbeddedServer() as server:
        async with open_client(server.url, Path(folder)) as client:
            bench = Bench(plan, Path(folder), server, client)
            await bench.run()
    return bench


def run(options: Options) -> Report:
    more = options.more
    size = SIZES[more.backbone]
    plan = Plan(size, 16, size.jobs, more.seconds or size.seconds, options.rounds or 3)
    if options.quick:
        plan = Plan(size, 4, size.jobs // 8, more.seconds or 1.5, options.rounds or 2)
    bench = uvloop.run(_run(plan))
    samples = bench.samples
    ratios = {}
    for rival in _RIVALS:
        ratios[f"latency_vs_{rival}"] = ratio(
            samples, f"latency_90_ours_vs_{rival}_mean_s", f"latency_90_{rival}_mean_s"
        )
        ratios[f"max_rate_vs_{rival}"] = ratio(samples, f"max_rate_ours_vs_{rival}_per_s", f"max_rate_{rival}_per_s")
    for key, rival in (("memory_vs_copies", "processes"), ("memory_vs_colocated", "colocated")):
        ratios[key] = ratio(samples, f"memory_ours_vs_{rival}_bytes", f"memory_{rival}_bytes")
    return Report("sharing", ratios, samples, _config(plan, more.backbone, bench), cpu_name())


def _config(plan: Plan, backbone: str, bench: Bench) -> dict[str, Any]:
    return {
        "backbone": f"{backbone} size: BERT, {plan.size.layers} layers of {plan.size.hidden}, random weights, fp32",
        "tasks": f"{plan.tasks}, each a LoRA r8 on all linears (merged into the copies) and a head of 4 labels",
        "pass_units": plan.size.pass_units,
        "window_passes": _WINDOW,
        "jobs_saturated": plan.jobs,
        "seconds_of_arrivals": plan.seconds,
        "rounds": plan.rounds,
        "cores": "workers: one, shared; broker and client: the rest; all at niceness -15 where the system allows it",
        "threads": 1,
        "largest_score_difference": bench.difference,
        "torch": torch.__version__,
        "anchors": "paper: latency 80 % lower than processes, 33 % lower than colocated; 6 x the tasks in the same memory",
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", choices=list(SIZES), default="bert_width", help="shape of the backbone")
    parser.add_argument("--seconds", type=float, help="length of one run of arrivals")


if __name__ == "__main__":
    main(run, __doc__ or "", _arguments)
