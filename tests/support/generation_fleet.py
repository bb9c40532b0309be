"""Real processes that generate: a small Llama with random weights, LoRAs of several ranks on it, and callers that read along."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fmplex import Client
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.keys import GROUP, Keys
from fmplex_broker.streams.queue_client import Pending, QueueClient
from fmplex_broker.wire.messages import CLASSES, Flow, Reply
from fmplex_broker.wire.stats import WorkerStats
from fmplex_broker.wire.streaming import Delta
from tests.support import tiny
from tests.support.decoders import save_model
from tests.support.fleets import spawn, worker_ids, write_fleet
from tests.support.packages import lora_factors, write_adapter, write_package
from tests.support.waiting import PATIENCE_S, until, wait_until

BACKBONE = "llama"
HIDDEN, INNER, LAYERS, KV = tiny.HIDDEN, 48, 2, tiny.HIDDEN // 2  # of that model
TOKEN_BYTES = 2 * LAYERS * KV * 4
# vFMs that generate, by name: rank of the LoRA (0: none).
VFMS = {"plain": 0, "rank2": 2, "rank4": 4, "rank8": 8, "rank16": 16, "rank32": 32}
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
PATIENT_MS = 600_000
_NEAR_TIE = 1e-4
_LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KV),
    "self_attn.v_proj": (HIDDEN, KV),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INNER),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}


def write_lora(folder: Path, rank: int) -> Path:
    """Write a LoRA on all linears, as PEFT saves it; large enough to make other texts."""
    linears = {f"model.layers.{i}.{path}": widths for i, (path, widths) in product(range(LAYERS), _LINEARS.items())}
    tensors = lora_factors(linears, rank, seed=rank, scale=0.1)
    return write_adapter(folder, tensors, r=rank, lora_alpha=2 * rank)


def prompt(tokens: int, seed: int = 0) -> dict[str, list[int]]:
    """Draw token ids."""
    return {"input_ids": np.random.default_rng(seed).integers(2, 250, tokens).tolist()}


class Site:
    """A broker and workers on it, each of which hosts the small Llama under some name. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = EmbeddedServer(folder / "broker")
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._model = save_model(folder / "model")

    @property
    def url(self) -> str:
        return self.server.url

    def config(self, name: str, backbone: str = BACKBONE, pass_units: int = 256, **worker: Any) -> Path:
        """Write a fleet file `NAME.toml`."""
        hosted = {"name": backbone, "model": str(self._model), "pass_units": pass_units}
        return write_fleet(self.folder / f"{name}.toml", hosted, worker={"device": "cpu", "threads": 1, **worker})

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(self, name: str, backbone: str = BACKBONE, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker; see `serving`."""
        config = self.config(name, backbone, **settings)
        self.workers[name] = spawn("fmplex_worker", config, self.url, self.folder / f"{name}.log")
        return self.workers[name]

    def serving(self, *names: str) -> None:
        """Wait until these workers serve."""
        for name in names:
            process = self.workers[name]
            wait_until(lambda n=name, p=process: p.poll() is not None or self.ids(n), f"{name} serves")  # type: ignore[misc]
            assert process.poll() is None, self.log(name)

    def add(self, *names: str, backbone: str = BACKBONE, **settings: Any) -> None:
        """Start workers, and wait until they serve."""
        for name in names:
            self.start(name, backbone, **settings)
        self.serving(*names)

    def ids(self, name: str) -> list[str]:
        """Return the ids under which a worker has served, oldest first."""
        return worker_ids(self.log(name))

    def deploy(self, *names: str, backbone: str = BACKBONE, prefix: str = "", **operating: Any) -> None:
        """Deploy some of `VFMS` on a backbone; their names there begin with `prefix`."""
        for name in names:
            self.deploy_as(prefix + name, {"kind": "generation"}, backbone, VFMS[name], **operating)

    def deploy_as(
        self, name: str, head: dict[str, Any], backbone: str = BACKBONE, rank: int = 0, seed: int = 0, **operating: Any
    ) -> None:
        """Deploy a vFM with this head. Those of one rank have the same LoRA."""
        with Client(self.url, artifacts=str(self.folder / "artifacts")) as client:
            client.vfms.deploy(self.package(name, head, backbone, rank, seed, **operating))

    def package(
        self, name: str, head: dict[str, Any], backbone: str = BACKBONE, rank: int = 0, seed: int = 0, **operating: Any
    ) -> Path:
        folder = self.folder / "vfms" / name
        write_package(folder, head, backbone=backbone, seed=seed, hidden=HIDDEN, **operating)
        if rank:
            shutil.copytree(self._adapter(rank), folder / "adapter")
        return folder

    def _adapter(self, rank: int) -> Path:
        folder = self.folder / "adapters" / str(rank)
        return folder if folder.exists() else write_lora(folder, rank)

    def kill(self, name: str) -> None:
        """Send a worker SIGKILL."""
        process = self.workers.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for process in self.workers.values():
            process.terminate()
        for process in self.workers.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.workers.clear()

    def __enter__(self) -> Site:
        self.server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        self.server.stop()


# ---- callers ----


class Reading:
    """A caller that reads a text as it comes."""

    def __init__(self, pending: Pending) -> None:
        self.pending = pending
        self.parts: list[Delta] = []
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> Reply:
        async with aclosing(self.pending.stream()) as coming:  # type: ignore[type-var]
            async for part in coming:
                assert part.at == len(self.text), "the parts follow each other"
                assert part.token_at == self.tokens
                self.parts.append(part)
        return await self.pending.result()

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    async def output(self) -> dict[str, Any]:
        """Wait for the whole, which is what was read along."""
        reply = await self.task
        assert reply.error is None, reply.error
        assert self.text == reply.output["text"]
        assert self.tokens == reply.output["completion_tokens"]
        return dict(reply.output)

    async def reaches(self, tokens: int) -> None:
        await until(lambda: self.tokens >= tokens or self.task.done(), f"{tokens} tokens have come")
        assert self.tokens >= tokens, self.task.result().error


async def submit(session: QueueClient, vfm: str, value: Any, **params: Any) -> Pending:
    timeout_ms = params.pop("timeout_ms", PATIENT_MS)
    return (await session.submit(vfm, [value], params, timeout_ms=timeout_ms))[0]


async def read(session: QueueClient, vfm: str, value: Any, **params: Any) -> Reading:
    return Reading(await submit(session, vfm, value, stream=True, **params))


async def write(session: QueueClient, vfm: str, value: Any, **params: Any) -> dict[str, Any]:
    """Return the output of one job, read at its end; raise its error."""
    reply = await (await submit(session, vfm, value, **params)).result()
    if reply.error is not None:
        raise reply.error
    return dict(reply.output)


def assert_same(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare two texts, token by token, up to a near-tie: there two tokens were as good as equal, and what follows may differ.
    Both were asked for with `logprobs=2`."""
    for i, (ours, theirs) in enumerate(zip(got["logprobs"], wanted["logprobs"], strict=False)):
        if ours["id"] != theirs["id"]:
            best, second = (entry["logprob"] for entry in theirs["top"])
            assert best - second < _NEAR_TIE, f"token {i} is another one: {got['text']!r}, not {wanted['text']!r}"
            return
    keys = ("text", "finish_reason", "prompt_tokens", "completion_tokens")
    assert {key: got[key] for key in keys} == {key: wanted[key] for key in keys}


# ---- looking ----


async def stats(session: QueueClient, backbone: str = BACKBONE) -> list[WorkerStats]:
    """What the workers of a backbone last said of themselves, which they do once a second."""
    view = await read_fleet(session.redis, session.registry)
    return [worker for worker in view.workers if worker.backbone == backbone]


async def next_stats(session: QueueClient, backbone: str = BACKBONE) -> list[WorkerStats]:
    """Wait for what they say from now on."""
    before = {worker.worker: worker.uptime_s for worker in await stats(session, backbone)}

    async def newer() -> list[WorkerStats] | None:
        now = await stats(session, backbone)
        return now if now and all(worker.uptime_s != before.get(worker.worker) for worker in now) else None

    return list(await until(newer, "the workers have spoken again"))


async def holds_nothing(
    session: QueueClient, backbone: str = BACKBONE, patience_s: float = PATIENCE_S
) -> list[WorkerStats]:
    """Wait until no worker has a job in hand; then no KV cache is held either, and nothing is left in the queues."""

    async def idle() -> list[WorkerStats] | None:
        now = await next_stats(session, backbone)
        return now if not any(worker.held for worker in now) else None

    workers = await until(idle, "no worker has anything in hand", patience_s)
    for worker in workers:
        left = {flow.vfm: stats.kv_bytes for flow, stats in worker.flows.items() if stats.kv_bytes}
        left |= {"kv_bytes": worker.kv_bytes, "waiting_memory": worker.waiting_memory}
        assert not any(left.values()), f"{worker.worker} has no job and yet {left}"
    await nothing_queued(session, backbone, [flow.vfm for worker in workers for flow in worker.flows])
    return list(workers)


async def in_hand(session: QueueClient, vfms: Iterable[str], backbone: str = BACKBONE) -> Counter[str]:
    """Count the jobs of these vFMs that each worker has claimed and not answered, now."""
    keys, out = Keys(backbone), Counter[str]()
    for flow in [Flow(vfm, cls) for vfm in vfms for cls in CLASSES]:
        groups = (
            await session.redis.xinfo_groups(keys.queue(flow)) if await session.redis.exists(keys.queue(flow)) else []
        )
        if groups:  # there is none until the first claim
            summary = await session.redis.xpending(keys.queue(flow), GROUP)
            out.update({who["name"].decode(): who["pending"] for who in summary["consumers"]})
    return out


async def nothing_queued(session: QueueClient, backbone: str, vfms: Sequence[str]) -> None:
    keys = Keys(backbone)
    assert not await in_hand(session, vfms, backbone)
    for flow in [Flow(vfm, cls) for vfm in vfms for cls in CLASSES]:
        assert await session.redis.xlen(keys.queue(flow)) == 0, flow
