"""Tokens a second of generated text: FMplex's worker against transformers' own ways with the same model.

24 requests (12 if their prompts are long) of mixed lengths come at once. FMplex: a real worker behind the broker. `cb`:
transformers' continuous batching (block sharing off, room for all requests at once); `static`: its `generate` in padded
batches of 8 as the requests come, each until its longest text ends; `one`: its `generate`, one request at a time. Every process
has the same core, one awake at a time.
The model: a Llama of about 50 M random weights. Texts end after the number of tokens that was asked for, whatever they say.

`ratios`: tokens a second over those of each (short prompts: 8 to 128 tokens, long: 512 to 1,024; without either name: the lower
of both); `lora8_step_over_plain`: the time of a decoding pass of 8 rows with 8 LoRAs (r16, all linears) over one without.
`samples` has TTFT and inter-token latencies too, with other requests of the kind, half as many (a quarter, where prompts are
long), spread out over the time in which the worker can do them twice.

    python -m benchmarks.generation [--json] [--rounds N] [--quick] [--requests N] [--prompts short long]

takes about nine minutes, two thirds of them for the long prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.decoder import (
    PASS_UNITS,
    PROMPTS,
    TEXT,
    GenerationRequest,
    random_requests,
    save_llama,
    save_lora,
)
from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.harness import Benchmark, Ratios, Report, interleave, main, worst
from benchmarks.processes import LineProcess
from benchmarks.stopping import run_async
from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, make_package
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.opening import open_engine
from fmplex_worker.protocol import Work

_ADAPTERS = 8
_RIVALS = {"cb": "transformers_cb", "static": "static", "one": "one"}
_REQUESTS = {"short": 24, "long": 12}
_VFM = "writer"


# ---- FMplex ----


async def together(session: QueueClient, wanted: Sequence[GenerationRequest]) -> float:
    """Return tokens a second of requests that come at once."""
    begun = time.perf_counter()
    await asyncio.gather(*(_whole(session, request) for request in wanted))
    return sum(request.tokens for request in wanted) / (time.perf_counter() - begun)


async def _whole(session: QueueClient, request: GenerationRequest) -> None:
    pending = await session.submit(_VFM, [{"input_ids": request.prompt}], request.params)
    reply = await pending[0].result()
    assert reply.error is None, reply.error
    assert reply.output["completion_tokens"] == request.tokens


@dataclass(frozen=True)
class Heard:
    """Seconds to first tokens, and from each token of a text to the next."""

    ttft: list[float]
    inter_token: list[float]

    def percentiles(self, kind: str) -> dict[str, float]:
        """Name p50 and p99 of both."""
        named = {"ttft": self.ttft, "inter_token": self.inter_token}
        return {
            f"{kind}_{name}_p{q}_s": float(np.percentile(values, q)) for name, values in named.items() for q in (50, 99)
        }


async def spread_out(session: QueueClient, wanted: Sequence[GenerationRequest], seconds: float) -> Heard:
    """Send requests evenly over so many seconds, and read along."""
    heard = Heard([], [])

    async def one(request: GenerationRequest, due: float) -> None:
        await asyncio.sleep(due)
        begun = last = time.perf_counter()
        params = request.params | {"stream": True}
        pending = (await session.submit(_VFM, [{"input_ids": request.prompt}], params))[0]
        told = 0
        async for delta in pending.stream():
            now = time.perf_counter()
            if told:
                heard.inter_token.extend([(now - last) / max(delta.tokens, 1)] * max(delta.tokens, 1))
            else:
                heard.ttft.append(now - begun)
            told, last = told + delta.tokens, now
        assert (await pending.result()).error is None

    await asyncio.gather(*(one(request, seconds * i / len(wanted)) for i, request in enumerate(wanted)))
    return heard


# ---- LoRAs in a decoding pass ----


class Steps:
    """Decoding passes of 8 rows, with an adapter each or none."""

    def __init__(self, folder: Path, passes: int) -> None:
        self._passes = passes
        torch.set_num_threads(1)
        spec = BackboneSpec(name="steps", model=str(folder), pass_units=PASS_UNITS)
        self._engine = open_engine(spec, WorkerSpec(device="cpu"))
        self._digests = {"plain": [self._load("plain", None)] * _ADAPTERS}
        self._digests["lora8"] = [
            self._load(f"lora{i}", save_lora(folder, folder.parent / f"adapter{i}", i)) for i in range(_ADAPTERS)
        ]

    def _load(self, name: str, adapter: Path | None) -> str:
        files = {}
        if adapter is not None:
            files = {
                ADAPTER_CONFIG: (adapter / "adapter_config.json").read_bytes(),
                ADAPTER_WEIGHTS: (adapter / "adapter_model.safetensors").read_bytes(),
            }
        package = make_package(VfmSpec(name=name, backbone="steps", head=Generation()), files)
        self._engine.load(self._engine.fit(package))
        return package.digest

    def seconds(self, which: str) -> float:
        """Return the seconds of the median decoding pass."""
        rows = [
            (digest, Request({"input_ids": request.prompt}, GenerationRequest([], self._passes + 2).params))
            for digest, request in zip(self._digests[which], random_requests("short", _ADAPTERS), strict=True)
        ]
        jobs = [job for job in self._engine.prepare(rows) if not isinstance(job, FmplexError)]
        assert len(jobs) == len(rows)
        self._engine.step([Work(job, sum(piece.tokens for piece in job.pieces())) for job in jobs])
        took = [self._engine.step([Work(job, 1) for job in jobs]).seconds for _ in range(self._passes)]
        for job in jobs:
            self._engine.drop(job)
        return statistics.median(took)


def measure_steps(report: Report, folder: Path) -> None:
    """Let decoding passes with and without LoRAs take turns, in this process."""
    steps = Steps(folder, passes=8 if report.options.quick else 40)

    def turn(which: str) -> dict[str, float]:
        return {f"step_{which}_s": steps.seconds(which)}

    interleave(report, {which: partial(turn, which) for which in ("plain", "lora8")}, report.options.rounds)


# ---- all of it ----


class Bench:
    """The worker and the process of transformers on one core, one of them awake; and what each is asked."""

    def __init__(self, report: Report, session: QueueClient, workers: Workers, rival: LineProcess) -> None:
        self._report = report
        self._session = session
        self._workers = workers
        self._rival = rival

    async def measure(self, kind: str, count: int) -> None:
        """Let all ways take turns at the same requests."""
        for number in range(-1, self._report.options.rounds):
            wanted = random_requests(kind, count if number >= 0 else 2, max(number, 0))
            later = random_requests(kind, max(1, count // (2 if kind == "short" else 4)), 100 + number)
            ways = ["fmplex", *_RIVALS]
            for way in ways if number % 2 == 0 else ways[::-1]:
                if way == "fmplex":
                    figures = await self._ours(kind, wanted, later if number >= 0 else [])
                else:
                    figures = {f"{kind}_{way}_tokens_per_s": await asyncio.to_thread(self._theirs, way, wanted)}
                if number >= 0:
                    self._report.add(figures)

    async def _ours(
        self, kind: str, wanted: Sequence[GenerationRequest], later: Sequence[GenerationRequest]
    ) -> dict[str, float]:
        """Measure the requests at once, and then `later` spread out over twice the time that they need."""
        self._workers.thaw()
        speed = await together(self._session, wanted)
        figures = {f"{kind}_fmplex_tokens_per_s": speed}
        if later:
            seconds = 2 * sum(request.tokens for request in later) / speed
            figures |= (await spread_out(self._session, later, seconds)).percentiles(kind)
        self._workers.freeze()
        return figures

    def _theirs(self, way: str, wanted: Sequence[GenerationRequest]) -> float:
        """Return transformers' tokens a second."""
        line = json.dumps([way, [[request.prompt, request.tokens] for request in wanted]])
        tokens, seconds = json.loads(self._rival.ask(line))
        assert tokens == sum(request.tokens for request in wanted), f"{way} gave {tokens} tokens"
        return float(tokens / seconds)


async def _measure(report: Report, folder: Path, model: Path) -> None:
    *rest, core = cores()
    with (
        EmbeddedServer(folder / "broker") as server,
        Workers(folder, server.url) as workers,
        LineProcess("benchmarks.transformers_rival", str(model)) as rival,
    ):
        session = QueueClient.connect(server.url)
        try:
            workers.start(fleet_file(folder, "llama", model, pass_units=PASS_UNITS))
            await workers.ready(session.registry)
            async with open_client(server.url, folder) as client:
                await deploy(client, [VfmSpec(name=_VFM, backbone="llama", head=Generation())])
            await workers.settled()
            workers.pin([core])
            workers.freeze()
            pin(rival.pid, [core])
            for pid in (server.pid, psutil.Process().pid):
                pin(pid, rest or [core])
            for kind, count in report.config["requests"].items():
                await Bench(report, session, workers, rival).measure(kind, count)
        finally:
            await session.close()


def run(report: Report) -> None:
    """Measure decoding passes, and then each kind of prompts."""
    options, more = report.options, report.options.more
    counts = {
        kind: more.requests or (_REQUESTS[kind] // 6 if options.quick else _REQUESTS[kind]) for kind in more.prompts
    }
    report.device += f", torch {torch.__version__}"
    report.config |= {
        "requests": counts,
        "prompts": {kind: PROMPTS[kind] for kind in more.prompts},
        "texts": TEXT,
        "pass_units": PASS_UNITS,
        "rounds": options.rounds,
        "threads": 1,
    }
    with tempfile.TemporaryDirectory(prefix="fmplex-generation-") as place:
        folder = Path(place)
        model = save_llama(folder / "model", small=options.quick)
        measure_steps(report, model)
        run_async(_measure(report, folder, model))


def ratios(report: Report) -> Ratios:
    """Compare our tokens a second to each rival's, and a pass with LoRAs to one without."""
    kinds = report.config.get("prompts", ())
    out = {
        f"tokens_s_over_{name}_{kind}": report.ratio(f"{kind}_fmplex_tokens_per_s", f"{kind}_{way}_tokens_per_s")
        for kind in kinds
        for way, name in _RIVALS.items()
    }
    out["tokens_s_over_static"] = worst((out[f"tokens_s_over_static_{kind}"] for kind in kinds), min)
    return out | {"lora8_step_over_plain": report.ratio("step_lora8_s", "step_plain_s")}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, help="at once (default: 24, of long prompts 12)")
    parser.add_argument("--prompts", choices=list(PROMPTS), nargs="+", default=list(PROMPTS))


if __name__ == "__main__":
    main(Benchmark("generation", run, ratios, __doc__ or "", rounds=5, arguments=_arguments))
