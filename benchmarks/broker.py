"""Throughput of jobs through the broker, and the cost of registered vFMs that are idle.

`samples.enqueue_per_s`: jobs added by one process, 64 a call. `samples.drain_per_s`: no-op jobs claimed, run and settled by
one worker process, preloaded streams, append-only file on. `ratios.claim_10000_over_16`: claim latency with 16 active of
10,000 registered vFMs, over that with 16 registered.

    python -m benchmarks.broker [--json] [--rounds N] [--quick]          (about two minutes)
"""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress
from tempfile import TemporaryDirectory

from benchmarks.harness import Benchmark, Ratios, Report, interleave_async, main
from benchmarks.noop import BACKBONE, FINGERPRINT, UNITS
from benchmarks.processes import start_module
from benchmarks.stopping import run_async
from fmplex_broker.errors import Unavailable
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.specs.heads import Features
from fmplex_broker.specs.versions import version_of
from fmplex_broker.specs.vfm import Limits, VfmSpec
from fmplex_broker.streams.connection import Client, Scripts, open_redis
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.producer import NewJob, Producer
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.messages import Flow, Reply, Request, encode_reply, encode_request

_ACTIVE = 16
_PAYLOAD = encode_request(Request("x" * 280, {}))  # about 300 bytes
_DONE = encode_reply(Reply(output={"ok": True}))
_LEASE_MS = 120_000  # the worker is paused while its streams are filled


_TIMEOUT_MS = 600_000


def _spec(name: str, backbone: str) -> VfmSpec:
    return VfmSpec(name=name, backbone=backbone, head=Features(), limits=Limits(max_pending=1_000_000))


def _flows(backbone: str) -> list[Flow]:
    """Return the flows that have work."""
    return [Flow(f"{backbone}-{i}", "interactive") for i in range(_ACTIVE)]


class Throughput:
    """A no-op worker, and as many jobs a round as there are `jobs`."""

    def __init__(self, redis: Client, scripts: Scripts, jobs: int) -> None:
        self._redis = redis
        self._scripts = scripts
        self._jobs = jobs

    async def measure(self, report: Report, url: str, artifacts: str, rounds: int) -> None:
        """Fill the streams while the worker is paused, then let it drain them."""
        registry = Registry(self._redis, self._scripts)
        worker = start_module(
            "benchmarks.noop", "--broker", url, "--artifacts", artifacts, "--lease-ms", str(_LEASE_MS)
        )
        try:
            while not await registry.live_workers(BACKBONE):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            deployer = Deployer(registry, ArtifactStore(artifacts))
            for flow in _flows(BACKBONE):
                await deployer.deploy(bare(_spec(flow.vfm, BACKBONE)))
            producer = Producer(self._redis, self._scripts, BACKBONE)

            async def once() -> dict[str, float]:
                worker.send_signal(signal.SIGSTOP)
                enqueued = await self._fill(producer)
                worker.send_signal(signal.SIGCONT)
                drained = await self._drained(producer)
                return {"enqueue_per_s": self._jobs / enqueued, "drain_per_s": self._jobs / drained}

            await interleave_async(report, {"throughput": once}, rounds)
        finally:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
            worker.wait()

    async def _fill(self, producer: Producer) -> float:
        flows = _flows(BACKBONE)
        batch = [NewJob(flows[i % _ACTIVE], _PAYLOAD, UNITS, _TIMEOUT_MS) for i in range(self._jobs)]
        begun = time.perf_counter()
        await producer.enqueue(batch)
        return time.perf_counter() - begun

    async def _drained(self, producer: Producer) -> float:
        keys = [producer.keys.queue(flow) for flow in _flows(BACKBONE)]
        begun = time.perf_counter()
        while True:
            pipe = self._redis.pipeline(transaction=False)
            for key in keys:
                pipe.xlen(key)
            if not sum(await pipe.execute()):
                return time.perf_counter() - begun
            await asyncio.sleep(0.005)


class Claims:
    """A worker of our own hand on a backbone of its own, where some number of vFMs are registered."""

    def __init__(self, redis: Client, scripts: Scripts, registered: int) -> None:
        self._name = f"claim_{registered}"
        self._backbone = f"lane-{registered}"
        self._registered = registered
        self._registry = Registry(redis, scripts)
        self._consumer = Consumer(redis, scripts, self._backbone, f"{self._backbone}-w", lease_ms=3_600_000)
        self._producer = Producer(redis, scripts, self._backbone)

    async def open(self) -> None:
        """Register the vFMs and accept them all."""
        await self._consumer.join(FINGERPRINT)
        await self._registry.register_backbone(
            BackboneInfo(name=self._backbone, model="none", hidden=1, max_tokens=512)
        )
        version = version_of("v", FINGERPRINT.digest)
        for i in range(self._registered):
            name = f"{self._backbone}-{i}"
            with suppress(Unavailable):  # it does not wait for the vote, which comes next
                await self._registry.deploy(_spec(name, self._backbone), "v", timeout_s=0.0)
            await self._registry.vote(self._backbone, name, version, self._consumer.worker)

    async def once(self) -> dict[str, float]:
        """Measure the seconds of one claim of 32 jobs over 16 ready flows."""
        jobs = [NewJob(flow, _PAYLOAD, UNITS, _TIMEOUT_MS) for flow in _flows(self._backbone) for _ in range(2)]
        await self._producer.enqueue(jobs)
        begun = time.perf_counter()
        claim = await self._consumer.claim({"interactive": len(jobs)})
        seconds = time.perf_counter() - begun
        assert len(claim.jobs) == len(jobs)
        await self._consumer.settle([(job, _DONE) for job in claim.jobs])
        return {f"{self._name}_s": seconds}


async def _measure(report: Report, jobs: int, registered: int, claim_rounds: int) -> None:
    with EmbeddedServer() as server, TemporaryDirectory() as artifacts:
        redis = open_redis(server.url)
        scripts = Scripts(redis)
        try:
            await Throughput(redis, scripts, jobs).measure(report, server.url, artifacts, report.options.rounds)
            cases = {f"claim_{n}": Claims(redis, scripts, n) for n in (_ACTIVE, registered)}
            for case in cases.values():
                await case.open()
            await interleave_async(report, {name: case.once for name, case in cases.items()}, claim_rounds)
        finally:
            await redis.aclose()


def run(report: Report) -> None:
    """Measure throughput, then claims."""
    options = report.options
    jobs, registered = (2_000, 100) if options.quick else (20_000, 10_000)
    claim_rounds = options.rounds * (10 if options.quick else 60)
    report.config |= {
        "jobs": jobs, "active": _ACTIVE, "registered": registered, "payload_bytes": len(_PAYLOAD),
        "append_only_file": "everysec", "rounds": options.rounds, "claim_rounds": claim_rounds,
    }  # fmt: skip
    run_async(_measure(report, jobs, registered, claim_rounds))


def ratios(report: Report) -> Ratios:
    """Compare a claim with many registered vFMs to one with few."""
    many = f"claim_{report.config['registered']}"
    return {f"{many}_over_16": report.ratio(f"{many}_s", f"claim_{_ACTIVE}_s")}


if __name__ == "__main__":
    main(Benchmark("broker", run, ratios, __doc__ or "", rounds=7))
