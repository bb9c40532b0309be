"""Does a small task keep its latency beside somebody's crawler? Under each policy.

One worker a policy, all with the same backbone on the same core, one awake at a time. A victim sends single sentences at a
fixed low rate; an aggressor, as crawlers do, longer texts (four of them joined), at a rate of 1 ×, then 20 × (more than the
worker can do), then 1 × again; the same arrivals for every policy.
Latency counts from when a job was due. `drr` and `fifo` are the product's, by name in the fleet file; the others live in
`benchmarks/policies`. `drr` can be measured with smaller pass budgets too: from that curve an operator chooses.

`ratios`, the worst over backbones, with and without LoRA: `victim_p99_over_bound`, of the victim's jobs due in the burst, the
bound being a pass of its own and two full passes (as fifo ran them beside it, in the same round), + 20 %;
`victim_p99_over_fifo`; `throughput_drr_over_fifo`, tokens a second in the burst; means in the burst over those of fifo (the
prototype's: 0.081 and 1.16) and of BFQ.

    python -m benchmarks.fairness [--json] [--rounds N] [--quick] [--backbone NAME …] [--ways NAME …]

takes about eight minutes: two backbones, and the ways that the ratios need. With `--ways all` more than twice as long.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bursts import Phases, Sent, figures
from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.harness import Benchmark, Ratios, Report, main, without_pauses, worst
from benchmarks.models import MINILM, SIZES, Tasks, texts
from benchmarks.openloop import Arrival, poisson
from benchmarks.policies import POLICIES
from benchmarks.stopping import run_async
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import Reply

_PRODUCT = ("drr", "fifo")
_COMPARED = ("drr", "fifo", "bfq")  # by the ratios
_WAYS = [*_PRODUCT, *POLICIES, *(f"drr-{part:g}" for part in (0.5, 0.25, 0.125))]  # drr with parts of the pass budget
_LENGTH = 4  # sentences in a text of the aggressor
_VICTIM, _CALM, _BURST = 0.10, 0.08, 1.60  # of the maximum load; the burst is 20 × the calm
_KINDS = ("plain", "lora")
_CALIBRATION = 1280  # sentences that the maximum rate is measured with


class Way:
    """One policy with one pass budget: a worker, and a victim and an aggressor of each kind on it."""

    def __init__(self, folder: Path, url: str, name: str, pass_units: int) -> None:
        self.name = name
        self._policy, _, part = name.partition("-")
        self._pass_units = int(float(part or 1) * pass_units)
        self.workers = Workers(folder, url)

    def start(self, folder: Path, backbone: str, model: Path | str) -> None:
        """Start its worker."""
        product: dict[str, Any] = {"policy": self._policy} if self._policy in _PRODUCT else {}
        config = fleet_file(folder, backbone, model, pass_units=self._pass_units, **product)
        if product:
            self.workers.start(config)
        else:
            self.workers.start(config, "benchmarks.policies.serve", "--policy", self._policy)


class Bench:
    """All policies on one backbone."""

    def __init__(self, report: Report, name: str, folder: Path, server: EmbeddedServer, session: QueueClient) -> None:
        self._report = report
        self._name = name
        self._folder = folder
        self._session = session
        self._server = server
        self._size = SIZES[name]
        self._texts = texts(512)
        self._long = [" ".join(texts(_LENGTH, seed)) for seed in range(256)]
        self._ways = [Way(folder, server.url, way, self._size.pass_units) for way in report.options.more.ways]
        self._rate = 0.0
        *rest, self._core = cores()
        self._rest = rest or [self._core]

    async def open(self) -> None:
        """Start the ways one after the other, each frozen once it has its vFMs."""
        model: Path | str = MINILM
        tasks = Tasks(self._folder, self._size, 2)
        if self._name != "minilm":
            model = tasks.base
        pin(self._server.pid, self._rest)
        async with open_client(self._server.url, self._folder) as client:
            for way in self._ways:
                pin(psutil.Process().pid, [*self._rest, self._core])
                backbone = f"{self._name}-{way.name}"
                way.start(self._folder, backbone, model)
                await way.workers.ready(self._session.registry)
                await deploy(
                    client,
                    [
                        tasks.package(task, self._vfm(way, kind, task), backbone, adapter=kind == "lora")
                        for kind in _KINDS
                        for task in range(2)
                    ],
                )
                way.workers.pin([self._core])
                way.workers.freeze()
        pin(psutil.Process().pid, self._rest)

    def close(self) -> None:
        """Stop all workers."""
        for way in self._ways:
            way.workers.stop()

    def _vfm(self, way: Way, kind: str, task: int) -> str:
        return f"{self._name}-{way.name}-{kind}-{('victim', 'aggressor')[task]}"

    async def calibrate(self, jobs: int) -> None:
        """Let all see traffic, and measure drr's maximum rate (the aggressor's jobs a second, in the better of two runs), of
        which loads are parts."""
        for way in reversed(self._ways):
            way.workers.thaw()
            for kind in _KINDS:
                await self._one(self._vfm(way, kind, 1), self._texts[0])
                await self._saturate(self._vfm(way, kind, 1), 32)
            if way.name == "drr":
                self._rate = max([await self._saturate(self._vfm(way, "lora", 1), jobs // _LENGTH) for _ in range(2)])
            way.workers.freeze()
        self._report.config["maximum_jobs_per_s"][self._name] = self._rate

    async def _saturate(self, vfm: str, count: int) -> float:
        """Send jobs all at once; return how many a second were answered."""
        begun = time.perf_counter()
        await asyncio.gather(*(self._one(vfm, self._long[i % 256]) for i in range(count)))
        return count / (time.perf_counter() - begun)

    async def _one(self, vfm: str, text: str) -> Reply:
        pending = await self._session.submit(vfm, [text])
        reply = await pending[0].result()
        if reply.error is not None:
            raise reply.error
        return reply

    async def round(self, number: int, phases: Phases) -> None:
        """Measure every way in turn, the other way round in every other round."""
        for kind in _KINDS:
            arrivals = self._arrivals(phases, seed=100 * number + len(kind))
            for way in self._ways if number % 2 == 0 else self._ways[::-1]:
                if kind == "lora" or "-" not in way.name:
                    way.workers.thaw()
                    try:
                        measured = await self._turn(way, kind, arrivals, phases, number)
                    finally:
                        way.workers.freeze()
                    self._report.add({f"{self._name}_{kind}_{way.name}_{what}": v for what, v in measured.items()})

    def _arrivals(self, phases: Phases, seed: int) -> list[Arrival]:
        """Draw the arrivals of a round: task 0 is the victim, task 1 the aggressor."""
        whole = phases.before + phases.burst + phases.after
        out = poisson(_VICTIM * _LENGTH * self._rate, whole, 1, self._texts, seed)
        begun = 0.0
        for part, (load, seconds) in enumerate(
            [(_CALM, phases.before), (_BURST, phases.burst), (_CALM, phases.after)], start=1
        ):
            crowd = poisson(load * self._rate, seconds, 1, self._long, seed + 10 * part)
            out += [Arrival(begun + at, 1, text) for at, _, text in crowd]
            begun += seconds
        return sorted(out)

    async def _turn(
        self, way: Way, kind: str, arrivals: Sequence[Arrival], phases: Phases, number: int
    ) -> dict[str, float]:
        """Send the arrivals to one way. Returns its figures."""
        vfms = [self._vfm(way, kind, task) for task in range(2)]
        alone = [await self._one(vfms[0], self._texts[0]) for _ in range(8)]  # its connections are awake again too
        solo_s = statistics.median(reply.run_ms for reply in alone) / 1000
        victim, aggressor = await self._send(vfms, arrivals)
        if number == 0 and kind == "lora":
            latencies = [(round(sent.due, 3), round(sent.latency, 4)) for sent in victim]
            self._report.config["example"].setdefault(self._name, {})[way.name] = latencies
        return figures(victim, aggressor, phases, solo_s)

    async def _send(self, vfms: Sequence[str], arrivals: Sequence[Arrival]) -> list[list[Sent]]:
        """Send each when it is due, whatever became of those before. Returns what became of them, by task."""
        out: list[list[Sent]] = [[] for _ in vfms]
        begun = time.perf_counter() + 0.05

        async def one(arrival: Arrival) -> None:
            reply = await self._one(vfms[arrival.task], arrival.text)
            late = time.perf_counter() - begun - arrival.at
            out[arrival.task].append(Sent(arrival.at, late, reply.run_ms / 1000, reply.units))

        running = []
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, begun + arrival.at - time.perf_counter()))
            running.append(asyncio.create_task(one(arrival)))
        await asyncio.gather(*running)
        return [sorted(part) for part in out]


async def _run(report: Report, phases: Phases) -> None:
    options = report.options
    for name in options.more.backbone:
        with tempfile.TemporaryDirectory(prefix="fmplex-fairness-") as folder, EmbeddedServer() as server:
            session = QueueClient.connect(server.url)
            bench = Bench(report, name, Path(folder), server, session)
            try:
                await bench.open()
                await bench.calibrate(64 if options.quick else _CALIBRATION)
                without_pauses()
                for number in range(options.rounds):
                    await bench.round(number, phases)
            finally:
                bench.close()
                await session.close()


def run(report: Report) -> None:
    """Measure one backbone after the other."""
    options, more = report.options, report.options.more
    phases = Phases(0.2, 0.5, 0.3) if options.quick else Phases(0.5, 3.0, 2.0)
    more.backbone = more.backbone or (["bert_width"] if options.quick else ["bert_width", "minilm"])
    more.ways = _WAYS if "all" in more.ways else [way for way in _WAYS if way in {*_COMPARED, *more.ways}]
    report.config |= {
        "backbones": more.backbone,
        "ways": more.ways,
        "maximum_jobs_per_s": {},
        "victim": f"sentences, {_VICTIM:g} of the maximum load",
        "aggressor": f"{_LENGTH} sentences a text, {_CALM:g}, {_BURST:g}, {_CALM:g} of it, for the phases below",
        "phases_s": [phases.before, phases.burst, phases.after],
        "pass_units": {name: SIZES[name].pass_units for name in more.backbone},
        "rounds": options.rounds,
        "cores": "workers: one, one awake at a time; broker and client: the rest",
        "prototype": "FCFS 1149/1110, STFQ one at a time 35/4534, BFQ 93/1287: burst mean of victim/aggressor in ms, its GPU",
        "example": {},  # the victim's latencies in the first round, by backbone and way
    }
    run_async(_run(report, phases))


def ratios(report: Report) -> Ratios:
    """Compare drr to the others, at the worst of all cases."""
    cases = [f"{name}_{kind}" for name in report.config["backbones"] for kind in _KINDS]

    def at_worst(what: str, base_what: str, base: str, pick: Callable[..., list[float]] = max) -> list[float]:
        return worst((report.ratio(f"{case}_drr_{what}", f"{case}_{base}_{base_what}") for case in cases), pick)

    return {
        "victim_p99_over_bound": at_worst("victim_p99_s", "bound_s", "fifo"),
        "victim_p99_over_fifo": at_worst("victim_p99_s", "victim_p99_s", "fifo"),
        "throughput_drr_over_fifo": at_worst("tokens_per_s", "tokens_per_s", "fifo", min),
        "victim_mean_over_fifo": at_worst("victim_mean_s", "victim_mean_s", "fifo"),
        "aggressor_mean_over_fifo": at_worst("aggressor_mean_s", "aggressor_mean_s", "fifo"),
        "victim_mean_over_bfq": at_worst("victim_mean_s", "victim_mean_s", "bfq"),
        "aggressor_mean_over_bfq": at_worst("aggressor_mean_s", "aggressor_mean_s", "bfq"),
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", choices=list(SIZES), nargs="+", help="shapes of backbones")
    parser.add_argument(
        "--ways",
        choices=[*_WAYS, "all"],
        nargs="+",
        default=[],
        help=f"beside {', '.join(_COMPARED)}; drr-F: a smaller pass budget",
    )


if __name__ == "__main__":
    main(Benchmark("fairness", run, ratios, __doc__ or "", rounds=5, arguments=_arguments))
