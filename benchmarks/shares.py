"""Shares of two workers that vFMs receive, against those that their weights promise them.

8 vFMs of weights 1 to 8, each a LoRA and a head, send texts of 8 to 200 tokens, one length each; which weight has which length
is another in every round. Every queue in Redis is kept full. Two workers of one backbone, a core each where there are two,
share the work; broker and client run beside them. Received: device seconds that a vFM was charged by both workers in the middle
of a round, over the sum of all; promised: its weight over the sum of all.
`ratios.worst_share_error`: |received / promised - 1| of the vFM for which it is largest, median over the rounds.
`samples.error_weight_*`: received / promised - 1 of one vFM, by its weight; `error_tokens_*`: by the length of its texts.
To see where an error comes from, `worst_units`: the same as `worst_device`, of tokens; `worst_claims`: of the units that jobs
were taken for when they were sent (bytes / 4), which is what claims count; `us_per_token_*`: charged, by the length of the texts.

    python -m benchmarks.shares [--json] [--rounds N] [--quick] [--backbone NAME] [--seconds S]       (about six minutes)
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory, mkdtemp

import psutil
import torch
from transformers import AutoTokenizer

from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.harness import Benchmark, Ratios, Report, main, without_pauses
from benchmarks.models import SIZES, Size, Tasks, texts
from benchmarks.stopping import run_async
from fmplex import AsyncClient
from fmplex_broker.admission.requests import admit
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.producer import NewJob, Producer
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.fleet_view import Depth, FleetView
from fmplex_broker.wire.messages import INTERACTIVE, Flow, Payload
from fmplex_broker.wire.stats import FlowStats, by_flow

_BACKBONE = "shared"
_WORKERS = 2
_WEIGHTS = range(1, 9)
_TOKENS = (8, 13, 20, 32, 50, 79, 126, 200)
_STRIDE = 3  # from one weight's length to the next one's: neither rises with the other
_TEXTS = 32  # of each length
_DEPTH = 512  # jobs in a queue, those in workers' hands included
_TICK_S = 0.1
_START_S = 120.0
_TIMEOUT_MS = 3_600_000
_GOAL = 0.03


@dataclass(frozen=True, slots=True)
class Plan:
    """The amount of what is measured."""

    size: Size
    lead_s: float  # before what is measured: windows fill, costs and mean sizes are learnt
    seconds: float  # of the middle part of a round
    rounds: int


@dataclass(frozen=True, slots=True)
class Received:
    """One vFM's part of the middle of a round, as shares of all."""

    weight: int
    tokens: int  # of each of its texts
    promised: float
    device: float
    units: float
    claims: float
    us_per_token: float


def cut(model: Path, tokens: int, count: int) -> list[str]:
    """Make texts of real sentences, put together and cut to so many tokens, [CLS] and [SEP] included."""
    tokenizer = AutoTokenizer.from_pretrained(model, model_max_length=1 << 20)  # what is cut may be of any length
    out = []
    for number in range(count):
        text = " ".join(texts(64, seed=number))
        ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        out.append(text[: ends[tokens - 3][1]])
        if len(tokenizer(out[-1])["input_ids"]) != tokens:
            raise RuntimeError(f"a text cut to {tokens} tokens has another number of them: {out[-1]!r}")
    return out


class Queues:
    """Streams that never run dry: straight into Redis, without a reply to anybody."""

    def __init__(self, producer: Producer, lengths: Mapping[int, list[str]]) -> None:
        spec = VfmSpec(name="any", backbone=_BACKBONE, head=Embedding())
        self._producer = producer
        self._payloads = {tokens: admit(spec, some) for tokens, some in lengths.items()}
        self._sources: dict[str, Iterator[tuple[Payload, int]]] = {}
        self._sent: dict[str, deque[NewJob]] = {}

    def estimate(self, tokens: int) -> float:
        """Return the units that a job of this length is taken for before it is tokenised."""
        return fmean(units for _, units in self._payloads[tokens])

    def use(self, tokens: Mapping[str, int]) -> None:
        """Let each vFM send texts of so many tokens from now on."""
        self._sources = {vfm: cycle(self._payloads[n]) for vfm, n in tokens.items()}
        self._sent = {vfm: deque(maxlen=2 * _DEPTH) for vfm in tokens}

    async def top_up(self, depths: Mapping[Flow, Depth]) -> None:
        """Fill every queue, given how deep they are."""
        jobs = []
        for vfm, source in self._sources.items():
            flow = Flow(vfm, INTERACTIVE)
            there = depths.get(flow, Depth())
            for payload, units in islice(source, max(0, _DEPTH - there.waiting - there.pending)):
                jobs.append(NewJob(flow, payload, units, _TIMEOUT_MS))
                self._sent[vfm].append(jobs[-1])
        await self._producer.enqueue(jobs)

    async def clear(self) -> None:
        """Take back what no worker has."""
        await self._producer.cancel([(job.flow, job.job, job.idem) for sent in self._sent.values() for job in sent])


class Fleet:
    """Two workers of one backbone, and a vFM of each weight."""

    def __init__(self, folder: Path, server: EmbeddedServer, client: AsyncClient, size: Size) -> None:
        self._client = client
        self._redis = open_redis(server.url)
        self._scripts = Scripts(self._redis)
        self._registry = Registry(self._redis, self._scripts)
        self._tasks = Tasks(folder, size, len(_WEIGHTS))
        self._config = fleet_file(folder, _BACKBONE, self._tasks.base, pass_units=size.pass_units)
        self._workers = [Workers(Path(mkdtemp(dir=folder)), server.url) for _ in range(_WORKERS)]  # a log each
        self.vfms: dict[int, str] = {}  # by weight
        pin(server.pid, cores())

    async def start(self) -> Queues:
        """Start the workers and deploy the vFMs. Returns their queues."""
        for workers in self._workers:
            workers.start(self._config)
            await workers.ready(self._registry)
        async with asyncio.timeout(_START_S):
            while len(await self._registry.live_workers(_BACKBONE)) < _WORKERS:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(_TICK_S)
        packages = [self._tasks.package(i, f"weight-{w}", _BACKBONE, adapter=True) for i, w in enumerate(_WEIGHTS)]
        self.vfms = dict(zip(_WEIGHTS, await deploy(self._client, packages), strict=True))
        for weight, vfm in self.vfms.items():
            await self._client.vfms.update(vfm, weight=weight)
        for core, workers in zip(cycle(cores()), self._workers, strict=False):
            workers.pin([core])
        pin(psutil.Process().pid, cores())
        lengths = {tokens: cut(self._tasks.base, tokens, _TEXTS) for tokens in _TOKENS}
        return Queues(Producer(self._redis, self._scripts, _BACKBONE), lengths)

    async def look(self) -> FleetView:
        """Look at the workers and the queues."""
        return await read_fleet(self._redis, self._registry)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the workers for a block."""
        for workers in self._workers:
            workers.freeze()
        yield
        for workers in self._workers:
            workers.thaw()

    async def stop(self) -> None:
        """Stop the workers for good."""
        for workers in self._workers:
            workers.stop()
        await self._redis.aclose()


class Bench:
    """The rounds of one fleet."""

    def __init__(self, report: Report, plan: Plan, fleet: Fleet, queues: Queues) -> None:
        self._report = report
        self._plan = plan
        self._fleet = fleet
        self._queues = queues
        self._least = _DEPTH  # the fewest jobs that any queue was seen with

    async def round(self, number: int) -> None:
        """Let all begin together. What is measured lies between two looks, while every queue is kept full. Raises `RuntimeError`
        if one was not, or a job failed."""
        plan = self._plan
        tokens = {w: _TOKENS[(_STRIDE * i + number) % len(_TOKENS)] for i, w in enumerate(_WEIGHTS)}
        self._queues.use({self._fleet.vfms[weight]: n for weight, n in tokens.items()})
        with self._fleet.frozen():
            await self._queues.top_up({})
        begun, before = time.monotonic(), None
        while True:
            view, passed = await self._fleet.look(), time.monotonic() - begun
            if passed > plan.lead_s:
                before = before or view
                self._least = min(
                    self._least,
                    *(view.depths.get(Flow(v, INTERACTIVE), Depth()).waiting for v in self._fleet.vfms.values()),
                )
            if passed > plan.lead_s + plan.seconds:
                break
            await self._queues.top_up(view.depths)
            await asyncio.sleep(_TICK_S)
        self._report.config["fewest_jobs_waiting"] = self._least
        self._report.add(_samples(self._received(tokens, before or view, view)))
        with self._fleet.frozen():
            await self._queues.clear()
        while any(d.waiting or d.pending for d in (await self._fleet.look()).depths.values()):  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(_TICK_S)

    def _received(self, tokens: Mapping[int, int], before: FleetView, after: FleetView) -> list[Received]:
        then, now = by_flow(before.workers), by_flow(after.workers)
        flows = {weight: Flow(vfm, INTERACTIVE) for weight, vfm in self._fleet.vfms.items()}
        nothing = FlowStats()  # a slow machine may not have come to all of them by the first look
        got = {weight: now.get(flow, nothing).since(then.get(flow, nothing)) for weight, flow in flows.items()}
        if any(stats.failed for stats in got.values()) or not self._least:
            raise RuntimeError("jobs failed, or a queue ran dry: what was received says nothing")
        claims = {weight: stats.done * self._queues.estimate(tokens[weight]) for weight, stats in got.items()}
        device, units = (sum(getattr(s, what) for s in got.values()) for what in ("charged_s", "units"))
        return [
            Received(
                weight=weight, tokens=tokens[weight], promised=weight / sum(_WEIGHTS), device=stats.charged_s / device,
                units=stats.units / units, claims=claims[weight] / sum(claims.values()),
                us_per_token=1e6 * stats.charged_s / max(stats.units, 1),
            )
            for weight, stats in got.items()
        ]  # fmt: skip


def _samples(received: list[Received]) -> dict[str, float]:
    out: dict[str, float] = {}
    for what in ("device", "units", "claims"):
        out[f"worst_{what}"] = max(abs(getattr(r, what) / r.promised - 1) for r in received)
    for key in ("weight", "tokens"):
        by = attrgetter(key)
        out |= {f"error_{key}_{by(r)}": r.device / r.promised - 1 for r in sorted(received, key=by)}
    return out | {f"us_per_token_{r.tokens}": r.us_per_token for r in sorted(received, key=attrgetter("tokens"))}


async def _run(report: Report, plan: Plan) -> None:
    with TemporaryDirectory(prefix="fmplex-shares-") as place, EmbeddedServer() as server:
        folder = Path(place)
        async with open_client(server.url, folder) as client:
            fleet = Fleet(folder, server, client, plan.size)
            try:
                bench = Bench(report, plan, fleet, await fleet.start())
                without_pauses()
                for number in range(plan.rounds):
                    await bench.round(number)
            finally:
                await fleet.stop()


def run(report: Report) -> None:
    """Measure on a fleet of its own."""
    options, more = report.options, report.options.more
    lead_s, seconds = (2.0, 3.0) if options.quick else (5.0, 30.0)
    plan = Plan(SIZES[more.backbone], lead_s, more.seconds or seconds, options.rounds)
    report.config |= {
        "backbone": f"{more.backbone} size: BERT, {plan.size.layers} layers of {plan.size.hidden}, random weights, fp32",
        "vfms": "8, each a LoRA r8 on all linears and a head of 4 labels",
        "weights": list(_WEIGHTS),
        "tokens": _TOKENS,
        "workers": _WORKERS,
        "pass_units": plan.size.pass_units,
        "seconds_measured": plan.seconds,
        "rounds": plan.rounds,
        "threads": 1,
        "torch": torch.__version__,
        "goal": f"worst_share_error <= {_GOAL}",
    }
    run_async(_run(report, plan))


def ratios(report: Report) -> Ratios:
    """Return the largest error of a share of device seconds."""
    return {"worst_share_error": report.samples.get("worst_device", [])}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", choices=list(SIZES), default="bert_width", help="shape of the backbone")
    parser.add_argument("--seconds", type=float, help="length of the measured part of a round")


if __name__ == "__main__":
    main(Benchmark("shares", run, ratios, __doc__ or "", rounds=8, arguments=_arguments))
