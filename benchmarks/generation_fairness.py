"""Does a chat flow beside somebody's long texts on the same decoder? Under each policy.

One worker a policy, both with the same Llama of about 50 M random weights on the same core, one awake at a time. `essays` keeps
16 requests in the worker's hands: prompts of 1,000 tokens, texts of 64 to 256. `chat` sends prompts of 8 to 64 tokens for texts
of 20 to 40, two a second on average, the same for every policy, and reads along. Texts end after the number of tokens that was
asked for, whatever they say.

Times are the reader's. What comes in one part came after one wait: its other tokens count as gaps of nothing. TTFT counts from
when a request was due.

`ratios`: `inter_token_p99_over_budget`, the p99 of the chat's gaps over the time of a full pass, as the worker says it is
(`budget_s`); `ttft_p99_over_bound`, of its times to first tokens over three such passes and what its own prompt takes without
company. The same for `fifo`; and what the essays get under drr over what they get under fifo, in tokens a second.

    python -m benchmarks.generation_fairness [--json] [--rounds N] [--quick] [--seconds S]       (about nine minutes)
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.decoder import PASS_UNITS, GenerationRequest, random_request, save_llama
from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.harness import Benchmark, Ratios, Report, interleave_async, main, without_pauses
from benchmarks.stopping import run_async
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.vfm import Slo, VfmSpec
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.stats import WorkerStats

_POLICIES = ("drr", "fifo")
_PROMPT, _TEXT = (1000, 1000), (64, 256)
_CHAT_PROMPT, _CHAT_TEXT, _CHATS_S = (8, 64), (20, 40), 2.0
_DEADLINE_MS = 3_600_000
_WARM_UP_S = 4.0


@dataclass(frozen=True)
class Plan:
    """The amount of what is measured."""

    essays: int  # at a time
    alone: int  # requests of the chat without company
    seconds: float  # of the chat, a policy and round
    rounds: int
    warm_up: int  # rounds


@dataclass(frozen=True)
class Chat:
    """A request of the chat, due `at` seconds after the beginning."""

    at: float
    request: GenerationRequest


@dataclass
class Heard:
    """Measured of the requests so far: seconds to first tokens, and from each token to the next."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0


def chats(seconds: float, seed: int) -> list[Chat]:
    """Draw Poisson arrivals."""
    rng = np.random.default_rng(seed)
    out, at = [], float(rng.exponential(1 / _CHATS_S))
    while at < seconds:
        out.append(Chat(at, random_request(rng, _CHAT_PROMPT, _CHAT_TEXT)))
        at += float(rng.exponential(1 / _CHATS_S))
    return out


class Reader:
    """Sends requests to one vFM and reads along."""

    def __init__(self, session: QueueClient, vfm: str) -> None:
        self._session = session
        self._vfm = vfm
        self.heard = Heard()

    async def read(self, request: GenerationRequest, due: float) -> None:
        """Send a request when it is `due` (perf_counter; if that is past, at once) and read its text."""
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        wanted = request.params | {"stream": True}
        pending = await self._session.submit(
            self._vfm, [{"input_ids": request.prompt}], wanted, timeout_ms=_DEADLINE_MS
        )
        try:
            last = due
            async for delta in pending[0].stream():
                now = time.perf_counter()
                (self.heard.ttft if last == due else self.heard.gaps).append(now - last)
                self.heard.gaps += [0.0] * (delta.tokens - 1)
                self.heard.tokens += delta.tokens
                last = now
            reply = await pending[0].result()
            assert reply.error is None, reply.error
        except asyncio.CancelledError:
            await asyncio.shield(pending[0].cancel())
            raise

    async def all(self, wanted: Sequence[Chat]) -> None:
        """Each when it is due, whatever became of those before."""
        begun = time.perf_counter() + 0.05
        await asyncio.gather(*(self.read(chat.request, begun + chat.at) for chat in wanted))

    async def keep_on(self, seed: int) -> None:
        """Ask for one essay after the other."""
        rng = np.random.default_rng(seed)
        while True:
            await self.read(random_request(rng, _PROMPT, _TEXT), time.perf_counter())


class Bench:
    """A worker a policy."""

    def __init__(self, report: Report, plan: Plan, folder: Path, server: EmbeddedServer, session: QueueClient) -> None:
        self._report = report
        self._plan = plan
        self._folder = folder
        self._server = server
        self._session = session
        self._workers = {policy: Workers(folder, server.url) for policy in _POLICIES}
        *rest, self._core = cores()
        self._rest = rest or [self._core]

    async def open(self) -> None:
        """Start both workers, each frozen once it has its vFMs."""
        model = save_llama(self._folder / "model", small=self._report.options.quick)
        pin(self._server.pid, self._rest)
        async with open_client(self._server.url, self._folder) as client:
            for policy, workers in self._workers.items():
                pin(psutil.Process().pid, [*self._rest, self._core])
                workers.start(fleet_file(self._folder, policy, model, pass_units=PASS_UNITS, policy=policy))
                await workers.ready(self._session.registry)
                slo = Slo(deadline_ms=_DEADLINE_MS)
                names = [f"{policy}-{task}" for task in ("chat", "essays")]
                await deploy(client, [VfmSpec(name=n, backbone=policy, head=Generation(), slo=slo) for n in names])
                await workers.settled()
                workers.pin([self._core])
                workers.freeze()
        pin(psutil.Process().pid, self._rest)

    def close(self) -> None:
        """Stop both workers."""
        for workers in self._workers.values():
            workers.stop()

    async def rounds(self) -> None:
        """Let the policies take turns, with the same requests for both of a round."""
        plan = self._plan
        seeds = dict.fromkeys(_POLICIES, -plan.warm_up)

        async def turn(policy: str) -> dict[str, float]:
            seed, seeds[policy] = seeds[policy], seeds[policy] + 1
            self._workers[policy].thaw()
            try:
                figures = await self._measure(policy, seed, min(_WARM_UP_S, plan.seconds) if seed < 0 else plan.seconds)
            finally:
                self._workers[policy].freeze()
            return {f"{policy}_{name}": value for name, value in figures.items()}

        await interleave_async(
            self._report, {policy: partial(turn, policy) for policy in _POLICIES}, plan.rounds, plan.warm_up
        )

    async def _measure(self, policy: str, number: int, seconds: float) -> dict[str, float]:
        """Read the chat alone, and then beside the essays. Returns the figures of one policy in one round."""
        wanted = chats(seconds, 100 + number)
        alone = Reader(self._session, f"{policy}-chat")
        for chat in wanted[: self._plan.alone]:
            await alone.read(chat.request, time.perf_counter())
        essays, reader = (Reader(self._session, f"{policy}-{vfm}") for vfm in ("essays", "chat"))
        writing = [asyncio.create_task(essays.keep_on(1000 * (number + 2) + i)) for i in range(self._plan.essays)]
        try:
            await self._saturated(essays, writing)
            essays.heard = Heard()
            begun = time.perf_counter()
            budgets = asyncio.create_task(self._budgets(policy))
            await reader.all(wanted)
            took, written = time.perf_counter() - begun, essays.heard.tokens
            budgets.cancel()
            budget_s = statistics.median(await budgets)
        finally:
            await self._end(policy, writing)
        prefill_s = statistics.median(alone.heard.ttft)
        out = {"budget_s": budget_s, "prefill_s": prefill_s, "ttft_bound_s": 3 * budget_s + prefill_s}
        for name, values in (("ttft", reader.heard.ttft), ("inter_token", reader.heard.gaps)):
            out |= {f"{name}_p{q}_s": float(np.percentile(values, q)) for q in (50, 99)}
        return out | {"essays_tokens_per_s": written / took, "chat_tokens_per_s": reader.heard.tokens / took}

    async def _saturated(self, essays: Reader, writing: Sequence[asyncio.Task[None]]) -> None:
        """Wait until the first essays grow while the last are in their prompts."""
        while len(essays.heard.ttft) < self._plan.essays // 4:
            await asyncio.wait(writing, timeout=0.1)
            for task in writing:
                if task.done():
                    task.result()

    async def _stats(self, policy: str) -> WorkerStats:
        view = await read_fleet(self._session.redis, self._session.registry)
        return next(worker for worker in view.workers if worker.backbone == policy)

    async def _budgets(self, policy: str) -> list[float]:
        """Collect the seconds of a full pass, as the worker says once a second, until cancelled."""
        out: list[float] = []
        with suppress(asyncio.CancelledError):
            while True:
                out.append((await self._stats(policy)).budget_s)
                await asyncio.sleep(1)
        return out

    async def _end(self, policy: str, writing: Sequence[asyncio.Task[None]]) -> None:
        """Give up the essays, and wait until the worker has none."""
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
        while (await self._stats(policy)).held:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _measure(report: Report, plan: Plan, folder: Path) -> None:
    with EmbeddedServer(folder / "broker") as server:
        session = QueueClient.connect(server.url)
        bench = Bench(report, plan, folder, server, session)
        try:
            await bench.open()
            without_pauses()
            await bench.rounds()
        finally:
            bench.close()
            await session.close()


def run(report: Report) -> None:
    """Measure both policies on a broker of their own."""
    seconds, rounds = report.options.more.seconds, report.options.rounds
    plan = Plan(4, 2, seconds or 3.0, rounds, 0) if report.options.quick else Plan(16, 8, seconds or 30.0, rounds, 1)
    report.device += f", torch {torch.__version__}"
    report.config |= {
        "essays": f"{plan.essays} at a time, prompts of {_PROMPT[0]} tokens, texts of {_TEXT}",
        "chat": f"prompts of {_CHAT_PROMPT} tokens, texts of {_CHAT_TEXT}, {_CHATS_S:g} a second",
        "pass_units": PASS_UNITS,
        "seconds": plan.seconds,
        "rounds": report.options.rounds,
        "cores": "workers: one, one awake at a time; broker and client: the rest",
    }
    with tempfile.TemporaryDirectory(prefix="fmplex-generation-") as folder:
        run_async(_measure(report, plan, Path(folder)))


def ratios(report: Report) -> Ratios:
    """Compare the chat's waits to their bounds under each policy, and the essays' rates."""
    out = {}
    for policy, suffix in (("drr", ""), ("fifo", "_fifo")):
        for what, value, bound in (
            ("inter_token_p99_over_budget", "inter_token_p99_s", "budget_s"),
            ("ttft_p99_over_bound", "ttft_p99_s", "ttft_bound_s"),
        ):
            out[what + suffix] = report.ratio(f"{policy}_{value}", f"{policy}_{bound}")
    return out | {"essays_drr_over_fifo": report.ratio("drr_essays_tokens_per_s", "fifo_essays_tokens_per_s")}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, help="of the chat, a policy and round (default: 30)")


if __name__ == "__main__":
    main(Benchmark("generation_fairness", run, ratios, __doc__ or "", rounds=5, arguments=_arguments))
