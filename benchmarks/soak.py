"""Hours in minutes: callers who come, read, and leave at any moment, and what is left in the end, which should be nothing.

Broker, gateway and two workers with a tiny Llama and far too little memory for keys and values. Callers with the `openai` package
and with bare sockets ask LoRA vFMs for texts, whole or as they come; they cancel, hang up in the middle or before the first word,
read slowly, ask for what can never fit or for more than there is time for, while other vFMs are deployed and removed under
their hands. Greedy texts, whole or not, must be what they are without company.

When all have gone, `ratios` counts what is left: bytes of keys and values (of rows; and of prompts kept for vFMs, once these
are removed), jobs in hand or queued, keys in Redis that would stay for ever, connections of the gateway; and what went wrong:
texts that were others, errors that nobody had asked for. The exit code is 1 unless all of it is 0.

    python -m benchmarks.soak [--json] [--minutes N] [--quick] [--callers N] [--seed N]      (about nine minutes)
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fleet import artifact_folder, write_fleet
from benchmarks.harness import Benchmark, Ratios, Report, main
from benchmarks.soak_callers import Caller, Expected, Owner, references
from benchmarks.stopping import run_async
from fmplex import AsyncClient
from fmplex.local import LocalFleet
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.keys import Keys
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import CLASSES, Flow
from fmplex_broker.wire.stats import WorkerStats
from tests.support.broker import keys_without_ttl
from tests.support.decoders import save_model
from tests.support.generation_fleet import BACKBONE, TOKEN_BYTES, write_lora
from tests.support.packages import write_package

_KV_TOKENS = 1024
_WORKERS = 2
_PATIENCE_S = 60.0
_SAMPLE_S = 5.0
# vFMs, with the ranks of their LoRAs and their deadlines.
_VFMS: dict[str, tuple[int, int]] = {
    "plain": (0, 600_000),
    "rank4": (4, 600_000),
    "rank16": (16, 600_000),
    "hasty": (0, 300),
}


@dataclass
class Found:
    """Findings of a run. `left`: by name, all zero if nothing leaks; `wrong`: texts and errors, in words."""

    did: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    worker_mb: list[float] = field(default_factory=list)
    most_waiting: int = 0


class Soak:
    """One fleet, from its first caller to what the last one left. `found` is filled as it goes."""

    def __init__(self, folder: Path, seed: int, callers: int, found: Found) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._callers = callers
        self.found = found
        self._model = save_model(folder / "model")
        tables = {
            "backbone": {"name": BACKBONE, "model": str(self._model), "pass_units": 64},
            "worker": {"device": "cpu", "threads": 1, "kv_bytes": _KV_TOKENS * TOKEN_BYTES},
        }
        config = write_fleet(folder / "fleet.toml", tables, artifacts=artifact_folder(folder))
        self.fleet = LocalFleet(config, workers=_WORKERS, port=0, data=folder / "data")

    async def run(self, seconds: float) -> None:
        """Let callers come for so long, and then look at what is left. The fleet has been started."""
        session = QueueClient.connect(self.fleet.broker_url)
        try:
            async with AsyncClient(self.fleet.gateway_url) as client:
                await self._deploy(client)
                await self._traffic(client, session, await references(client, [*_VFMS][:3]), seconds)
                await self._look_at_rows(session)
                await self._look_at_everything(client, session)
        finally:
            await session.close()

    # ---- while it runs ----

    async def _deploy(self, client: AsyncClient) -> None:
        for name, (rank, deadline_ms) in _VFMS.items():
            await client.vfms.deploy(
                self._package(name, {"kind": "generation"}, rank, slo={"deadline_ms": deadline_ms})
            )
        await client.vfms.deploy(self._package("vectors", {"kind": "embedding", "pooling": "last"}, 4))

    def _package(self, name: str, head: dict[str, Any], rank: int, **operating: Any) -> Path:
        package = write_package(self._folder / "vfms" / name, head, backbone=BACKBONE, **operating)
        if rank:
            write_lora(package / "adapter", rank)
        return package

    async def _traffic(self, client: AsyncClient, session: QueueClient, expected: Expected, seconds: float) -> None:
        found, over = self.found, asyncio.Event()
        guests = [self._package(f"guest-{i}", {"kind": "generation"}, 2 + i) for i in range(4)]
        owner = Owner(client, guests, random.Random(self._random.random()), found.did)
        callers = [
            Caller(self.fleet.gateway_url, expected, owner.serving, random.Random(self._random.random()), found)
            for _ in range(self._callers)
        ]
        running = [asyncio.create_task(owner.run(over)), asyncio.create_task(self._watch(session, over))]
        running += [asyncio.create_task(caller.run(over)) for caller in callers]
        await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        over.set()
        await asyncio.gather(*running)
        found.wrong += [f"{name} died: {self.fleet.log(name)}" for name in self.fleet.dead()]

    async def _watch(self, session: QueueClient, over: asyncio.Event) -> None:
        """Note how full it is meanwhile."""
        while not over.is_set():
            workers = await self._stats(session)
            self.found.worker_mb.append(sum(worker.memory_bytes for worker in workers) / 1e6)
            self.found.most_waiting = max(self.found.most_waiting, *(worker.waiting_memory for worker in workers), 0)
            await asyncio.wait([asyncio.create_task(over.wait())], timeout=_SAMPLE_S)

    # ---- what is left ----

    async def _stats(self, session: QueueClient) -> list[WorkerStats]:
        return (await read_fleet(session.redis, session.registry)).workers

    async def _after(self, session: QueueClient, wanted: Callable[[list[WorkerStats]], bool]) -> list[WorkerStats]:
        """Return what the workers say, once it is what is wanted; else what they say in the end."""
        end = time.monotonic() + _PATIENCE_S
        while True:
            await asyncio.sleep(1.5)  # they speak once a second
            workers = await self._stats(session)
            if time.monotonic() > end or (len(workers) == _WORKERS and wanted(workers)):
                return workers

    async def _look_at_rows(self, session: QueueClient) -> None:
        left, keys = self.found.left, Keys(BACKBONE)
        workers = await self._after(session, lambda workers: not any(w.held or w.kv_bytes for w in workers))
        left["workers_gone"] = _WORKERS - len(workers)
        left["kv_bytes"] = sum(worker.kv_bytes for worker in workers)
        left["jobs_in_hand"] = sum(worker.held for worker in workers)
        left["jobs_waiting_for_memory"] = sum(worker.waiting_memory for worker in workers)
        flows = [Flow(vfm, cls) for vfm in (*_VFMS, "vectors") for cls in CLASSES]
        left["jobs_queued"] = sum([await session.redis.xlen(keys.queue(flow)) for flow in flows])
        gateway = psutil.Process(self.fleet.processes["gateway"].pid)
        port = int(self.fleet.gateway_url.rpartition(":")[2])
        # Those that our own client keeps for its next call are no callers' any more, and rest for longer than this takes.
        kept = {c.laddr.port for c in psutil.Process().net_connections() if c.laddr and c.status == "ESTABLISHED"}
        open_ = [c for c in gateway.net_connections() if c.laddr and c.laddr.port == port and c.status != "LISTEN"]
        left["gateway_connections"] = sum(not c.raddr or c.raddr.port not in kept for c in open_)

    async def _look_at_everything(self, client: AsyncClient, session: QueueClient) -> None:
        """Remove the vFMs: then there are no prompts to keep and no queues, and only what is for ever may be for ever."""
        left, redis = self.found.left, session.redis
        for vfm in await client.vfms.list():
            await client.vfms.remove(vfm.name)
        workers = await self._after(session, lambda workers: not any(worker.prefix_bytes for worker in workers))
        left["prefix_bytes"] = sum(worker.prefix_bytes for worker in workers)
        living = {worker.worker for worker in workers}
        names = [key.decode() async for key in redis.scan_iter(count=1000)]
        prefix = Keys(BACKBONE).prefix
        self.found.keys = await keys_without_ttl(redis)
        self.found.keys += [name for name in names if name.startswith(f"{prefix}q:")]
        self.found.keys += [
            name for name in names if name.startswith(f"{prefix}held:") and name.split(":")[-1] not in living
        ]
        fields = [name.decode() for name in await redis.hkeys(Keys(BACKBONE).vfms)]
        self.found.keys += [f"vfms {name}" for name in fields if not name.startswith(":")]
        left["keys"] = len(self.found.keys)


async def soak(folder: Path, minutes: float, callers: int = 12, seed: int | None = None) -> Found:
    """Run one soak on a fleet of its own. Raises nothing for what it finds."""
    one = Soak(folder, _seed(seed), callers, Found())
    await asyncio.to_thread(one.fleet.start)
    try:
        await one.run(60 * minutes)
    finally:
        await asyncio.to_thread(one.fleet.stop)
    return one.found


def _seed(given: int | None) -> int:
    return random.randrange(1_000_000) if given is None else given


def run(report: Report) -> None:
    """Run one soak, and report what was left and what went wrong."""
    more, found = report.options.more, Found()
    minutes = more.minutes or (0.1 if report.options.quick else 8.0)
    report.config |= {"minutes": minutes, "callers": more.callers, "kv_tokens": _KV_TOKENS, "workers": _WORKERS}
    try:
        with tempfile.TemporaryDirectory(prefix="fmplex-soak-") as folder:
            one = Soak(Path(folder), _seed(more.seed), more.callers, found)
            with one.fleet:
                run_async(one.run(60 * minutes))
    finally:
        for words in [*found.wrong[:20], *found.keys[:20]]:
            print(words, file=sys.stderr)
        report.add({f"did_{name}": float(number) for name, number in sorted(found.did.items())})
        report.add({f"left_{name}": float(number) for name, number in found.left.items()})
        report.add({"wrong": float(len(found.wrong)), "most_waiting_for_memory": float(found.most_waiting)})
        report.samples["worker_mb"] = found.worker_mb


def ratios(report: Report) -> Ratios:
    """Return the counts of what is left and of what went wrong."""
    return {name: values for name, values in report.samples.items() if name.startswith("left_") or name == "wrong"}


def _clean(report: Report) -> bool:
    return not any(value for values in ratios(report).values() for value in values)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, help="that callers come (default: 8)")
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=None, help="of what they do (not of when it happens)")


if __name__ == "__main__":
    main(Benchmark("soak", run, ratios, __doc__ or "", arguments=_arguments, passed=_clean))
