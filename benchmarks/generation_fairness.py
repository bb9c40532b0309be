"""Whether a chat flows beside somebody's long texts on the same decoder, under each policy.

One worker a policy, both with the same Llama of about 50 M random weights on the same core, one awake at a time. `essays` keeps
16 requests in the worker's hands: prompts of 1,000 tokens, texts of 64 to 256. `chat` sends prompts of 8 to 64 tokens for texts
of 20 to 40, two a second on average, the same for every policy, and reads along. Texts end after the number of tokens that was
asked for, whatever they say.

Times are the reader's. What comes in one part came after one wait: its other tokens count as gaps of nothing. TTFT counts from
when a request was due.

`ratios`: `inter_token_p99_over_budget`, the p99 of the chat's gaps over the time of a full pass, as the worker says it is
(`budget_s`); `ttft_p99_over_bound`, of its times to first tokens over three such passes and what its own prompt takes without
company. The same for `fifo`; and what the essays get under drr over what they get under fifo, in tokens a second.

    python -m benchmarks.generation_fairness [--json] [--rounds N] [--quick]
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
import uvloop

from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.generation import Ask, params, save_llama
from benchmarks.harness import Options, Report, cpu_name, main, ratio, without_pauses
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.vfm import Slo, VfmSpec
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.fleet import look
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.stats import WorkerStats

_POLICIES = ("drr", "fifo")
_PASS_UNITS = 256
_PROMPT, _TEXT, _ESSAYS = 1000, (64, 256), 16
_CHAT_PROMPT, _CHAT_TEXT, _CHATS_S = (8, 64), (20, 40), 2.0
_DEADLINE_MS = 3_600_000
_FIRST_WORD, _LAST_WORD = 1000, 29_000  # of the tokenizer that is at hand


@dataclass(frozen=True)
class Chat:
    """A request of the chat, due `at` seconds after the beginning."""

    at: float
    ask: Ask


@dataclass
class Heard:
    """What came of the requests: seconds to first tokens, and from each token to the next."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0


def tokens(rng: np.random.Generator, count: int) -> list[int]:
    return list(map(int, rng.integers(_FIRST_WORD, _LAST_WORD, count)))


def chats(seconds: float, seed: int) -> list[Chat]:
    """Poisson arrivals."""
    rng = np.random.default_rng(seed)
    out, at = [], float(rng.exponential(1 / _CHATS_S))
    while at < seconds:
        prompt = tokens(rng, int(rng.integers(_CHAT_PROMPT[0], _CHAT_PROMPT[1] + 1)))
        out.append(Chat(at, Ask(prompt, int(rng.integers(_CHAT_TEXT[0], _CHAT_TEXT[1] + 1)))))
        at += float(rng.exponential(1 / _CHATS_S))
    return out


class Reader:
    """Sends requests to one vFM and reads along."""

    def __init__(self, session: QueueClient, vfm: str) -> None:
        self._session = session
        self._vfm = vfm
        self.heard = Heard()

    async def read(self, ask: Ask, due: float) -> None:
        """`due`: when it should be sent (perf_counter); not earlier, and if that is past at once."""
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        wanted = params(ask) | {"stream": True}
        pending = await self._session.submit(self._vfm, [{"input_ids": ask.prompt}], wanted, timeout_ms=_DEADLINE_MS)
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
        await asyncio.gather(*(self.read(chat.ask, begun + chat.at) for chat in wanted))

    async def keep_on(self, seed: int) -> None:
        """One essay after the other."""
        rng = np.random.default_rng(seed)
        while True:
            await self.read(Ask(tokens(rng, _PROMPT), int(rng.integers(_TEXT[0], _TEXT[1] + 1))), time.perf_counter())


class Bench:
    """A worker a policy."""

    def __init__(self, folder: Path, server: EmbeddedServer, session: QueueClient) -> None:
        self._folder = folder
        self._server = server
        self._session = session
        self._workers = {policy: Workers(folder, server.url) for policy in _POLICIES}
        self.samples: dict[str, list[float]] = {}
        *rest, self._core = cores()
        self._rest = rest or [self._core]

    async def open(self) -> None:
        model = save_llama(self._folder / "model")
        pin(self._server.pid, self._rest)
        async with open_client(self._server.url, self._folder) as client:
            for policy, workers in self._workers.items():
                pin(psutil.Process().pid, [*self._rest, self._core])
                config = fleet_file(self._folder, policy, model, pass_units=_PASS_UNITS, threads=1)
                config.write_text(config.read_text().replace("[worker]\n", f'[worker]\npolicy = "{policy}"\n'))
                workers.start(config)
                await workers.ready(self._session.registry)
                slo = Slo(deadline_ms=_DEADLINE_MS)
                names = [f"{policy}-{task}" for task in ("chat", "essays")]
                await deploy(client, [VfmSpec(name=n, backbone=policy, head=Generation(), slo=slo) for n in names])
                await workers.settled()
                workers.pin([self._core])
                workers.freeze()
        pin(psutil.Process().pid, self._rest)

    def close(self) -> None:
        for workers in self._workers.values():
            workers.stop()

    async def round(self, number: int, seconds: float) -> None:
        """`number` -1 warms up. Every policy in turn, the other way round in every other round."""
        for policy in _POLICIES if number % 2 == 0 else _POLICIES[::-1]:
            self._workers[policy].thaw()
            try:
                found = await self._measure(policy, number, seconds)
            finally:
                self._workers[policy].freeze()
            for name, value in found.items() if number >= 0 else ():
                self.samples.setdefault(f"{policy}_{name}", []).append(value)

    async def _measure(self, policy: str, number: int, seconds: float) -> dict[str, float]:
        wanted = chats(seconds, 100 + number)
        alone = Reader(self._session, f"{policy}-chat")
        for chat in wanted[:8]:
            await alone.read(chat.ask, time.perf_counter())
        essays = Reader(self._session, f"{policy}-essays")
        writing = [asyncio.create_task(essays.keep_on(1000 * (number + 2) + i)) for i in range(_ESSAYS)]
        try:
            await self._saturated(essays, writing)
            essays.heard = Heard()
            chat = Reader(self._session, f"{policy}-chat")
            begun = time.perf_counter()
            budgets = asyncio.create_task(self._budgets(policy))
            await chat.all(wanted)
            took = time.perf_counter() - begun
            written = essays.heard.tokens
            budgets.cancel()
            budget_s = statistics.median(await budgets)
        finally:
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)
            await self._idle(policy)
        prefill_s = statistics.median(alone.heard.ttft)
        out = {"budget_s": budget_s, "prefill_s": prefill_s, "ttft_bound_s": 3 * budget_s + prefill_s}
        for name, values in (("ttft", chat.heard.ttft), ("inter_token", chat.heard.gaps)):
            out |= {f"{name}_p{q}_s": float(np.percentile(values, q)) for q in (50, 99)}
        return out | {"essays_tokens_per_s": written / took, "chat_tokens_per_s": chat.heard.tokens / took}

    async def _saturated(self, essays: Reader, writing: Sequence[asyncio.Task[None]]) -> None:
        """Until the first essays grow while the last are in their prompts."""
        while len(essays.heard.ttft) < _ESSAYS // 4:
            await asyncio.wait(writing, timeout=0.1)
            for task in writing:
                if task.done():
                    task.result()

    async def _stats(self, policy: str) -> WorkerStats:
        view = await look(self._session.redis, self._session.registry)
        return next(worker for worker in view.workers if worker.backbone == policy)

    async def _budgets(self, policy: str) -> list[float]:
        """Seconds of a full pass, as the worker says once a second, until cancelled."""
        out: list[float] = []
        with suppress(asyncio.CancelledError):
            while True:
                out.append((await self._stats(policy)).budget_s)
                await asyncio.sleep(1)
        return out

    async def _idle(self, policy: str) -> None:
        while (await self._stats(policy)).held:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def measure(options: Options, folder: Path) -> Report:
    rounds, seconds = (1, 8.0) if options.quick else (options.rounds or 3, 60.0)
    with EmbeddedServer(folder / "broker") as server:
        session = QueueClient.connect(server.url)
        bench = Bench(folder, server, session)
        try:
            await bench.open()
            without_pauses()
            for number in range(-1, rounds):
                await bench.round(number, seconds if number >= 0 else 4.0)
        finally:
            bench.close()
            await session.close()
    samples = bench.samples
    ratios = {}
    for policy, suffix in (("drr", ""), ("fifo", "_fifo")):
        for what, value, bound in (
            ("inter_token_p99_over_budget", "inter_token_p99_s", "budget_s"),
            ("ttft_p99_over_bound", "ttft_p99_s", "ttft_bound_s"),
        ):
            ratios[what + suffix] = ratio(samples, f"{policy}_{value}", f"{policy}_{bound}")
    ratios["essays_drr_over_fifo"] = ratio(samples, "drr_essays_tokens_per_s", "fifo_essays_tokens_per_s")
    config = {
        "essays": f"{_ESSAYS} at a time, prompts of {_PROMPT} tokens, texts of {_TEXT}",
        "chat": f"prompts of {_CHAT_PROMPT} tokens, texts of {_CHAT_TEXT}, {_CHATS_S:g} a second",
        "pass_units": _PASS_UNITS,
        "seconds": seconds,
        "rounds": rounds,
        "cores": "workers: one, one awake at a time; broker and client: the rest",
    }
    return Report("generation_fairness", ratios, samples, config, f"{cpu_name()}, torch {torch.__version__}")


def run(options: Options) -> Report:
    with tempfile.TemporaryDirectory(prefix="fmplex-generation-") as folder:
        return uvloop.run(measure(options, Path(folder)))


if __name__ == "__main__":
    main(run, __doc__ or "")
