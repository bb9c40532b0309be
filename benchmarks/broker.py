"""How fast jobs go through the broker, and whether registered vFMs that are idle cost anything.

`samples.enqueue_per_s`: jobs added by one process, 64 a call. `samples.drain_per_s`: no-op jobs claimed, run and settled by
one worker process, preloaded streams, append-only file on. `ratios.claim_10000_over_16`: claim latency with 16 active of
10,000 registered vFMs, over that with 16 registered.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

import uvloop
from fmplex_broker.specs.vfm import Limits, VfmSpec

from benchmarks.harness import Options, Report, cpu_name, interleave_async, main, ratio
from benchmarks.noop import BACKBONE, UNITS
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.specs.heads import Features
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


class Bench:
    def __init__(self, redis: Client, url: str, artifacts: str, jobs: int, registered: int) -> None:
        self._redis = redis
        self._url = url
        self._artifacts = artifacts
        self._jobs = jobs
        self._registered = registered
        self._scripts = Scripts(redis)
        self._registry = Registry(redis, self._scripts)
        self.samples: dict[str, list[float]] = {"enqueue_per_s": [], "drain_per_s": []}

    async def throughput(self, rounds: int) -> None:
        """Fill the streams while the worker is paused, then let it drain them."""
        command = [
            sys.executable, "-m", "benchmarks.noop", "--broker", self._url, "--artifacts", self._artifacts,
            "--lease-ms", str(_LEASE_MS),
        ]  # fmt: skip
        worker = subprocess.Popen(command)  # noqa: ASYNC220
        try:
            while not await self._registry.live_workers(BACKBONE):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            deployer = Deployer(self._registry, ArtifactStore(self._artifacts))
            for name in self._names(_ACTIVE):
                await deployer.deploy(bare(self._spec(name, BACKBONE)))
            producer = Producer(self._redis, self._scripts, BACKBONE)
            for number in range(-1, rounds):
                worker.send_signal(signal.SIGSTOP)
                enqueued = await self._fill(producer)
                worker.send_signal(signal.SIGCONT)
                drained = await self._drained(producer)
                if number >= 0:
                    self.samples["enqueue_per_s"].append(self._jobs / enqueued)
                    self.samples["drain_per_s"].append(self._jobs / drained)
        finally:
            worker.terminate()
            worker.wait()

    async def _fill(self, producer: Producer) -> float:
        flows = [Flow(name, "interactive") for name in self._names(_ACTIVE)]
        batch = [NewJob(flows[i % _ACTIVE], _PAYLOAD, UNITS, 600_000) for i in range(self._jobs)]
        begun = time.perf_counter()
        await producer.enqueue(batch)
        return time.perf_counter() - begun

    async def _drained(self, producer: Producer) -> float:
        keys = [producer.keys.queue(Flow(name, "interactive")) for name in self._names(_ACTIVE)]
        begun = time.perf_counter()
        while True:
            pipe = self._redis.pipeline(transaction=False)
            for key in keys:
                pipe.xlen(key)
            if not sum(await pipe.execute()):
                return time.perf_counter() - begun
            await asyncio.sleep(0.005)

    async def claims(self, rounds: int) -> dict[str, list[float]]:
        """Seconds of one claim of 32 jobs over 16 ready flows, with few and with many registered vFMs."""
        lanes = {}
        for label, registered in (("claim_16", _ACTIVE), (f"claim_{self._registered}", self._registered)):
            lanes[label] = await self._lane(f"lane-{registered}", registered)
        seconds: dict[str, list[float]] = {label: [] for label in lanes}

        async def once(label: str) -> None:
            consumer, producer = lanes[label]
            flows = [Flow(name, "interactive") for name in self._names(_ACTIVE)]
            await producer.enqueue([NewJob(flow, _PAYLOAD, UNITS, 600_000) for flow in flows for _ in range(2)])
            begun = time.perf_counter()
            claim = await consumer.claim({"interactive": 32})
            seconds[label].append(time.perf_counter() - begun)
            assert len(claim.jobs) == 32
            await consumer.settle([(job, _DONE) for job in claim.jobs])

        await interleave_async({label: lambda label=label: once(label) for label in lanes}, rounds)
        return {label: values[-rounds:] for label, values in seconds.items()}

    async def _lane(self, backbone: str, registered: int) -> tuple[Consumer, Producer]:
        consumer = Consumer(self._redis, self._scripts, backbone, f"{backbone}-w", lease_ms=3_600_000)
        await consumer.join()
        await self._registry.register_backbone(BackboneInfo(name=backbone, model="none", hidden=1, max_tokens=512))
        for name in self._names(registered):
            spec = self._spec(name, backbone)
            vfms = consumer.keys.vfms
            await self._scripts(
                "propose", vfms, [name, "v", spec.model_dump_json(), -1, spec.limits.max_pending, 1.0, 0]
            )
            await self._scripts("vote", vfms, [name, "v", consumer.worker, ""])
        return consumer, Producer(self._redis, self._scripts, backbone)

    def _spec(self, name: str, backbone: str) -> VfmSpec:
        return VfmSpec(name=name, backbone=backbone, head=Features(), limits=Limits(max_pending=1_000_000))

    @staticmethod
    def _names(n: int) -> list[str]:
        return [f"vfm-{i}" for i in range(n)]


async def _run(options: Options) -> Report:
    jobs, registered = (2_000, 500) if options.quick else (20_000, 10_000)
    rounds = options.rounds or (2 if options.quick else 7)
    claim_rounds = rounds * (10 if options.quick else 60)
    with EmbeddedServer() as server, TemporaryDirectory() as artifacts:
        redis = open_redis(server.url)
        bench = Bench(redis, server.url, artifacts, jobs, registered)
        await bench.throughput(rounds)
        seconds = await bench.claims(claim_rounds)
        await redis.aclose()
    many = f"claim_{registered}"
    return Report(
        benchmark="broker",
        ratios={f"{many}_over_16": ratio(seconds, many, "claim_16")},
        samples=bench.samples | {f"{name}_s": values for name, values in seconds.items()},
        config={"jobs": jobs, "active": _ACTIVE, "registered": registered, "payload_bytes": len(_PAYLOAD),
                "append_only_file": "everysec", "rounds": rounds, "claim_rounds": claim_rounds},
        device=cpu_name(),
    )  # fmt: skip


def run(options: Options) -> Report:
    return uvloop.run(_run(options))


if __name__ == "__main__":
    main(run, __doc__ or "")
