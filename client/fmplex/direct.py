"""Straight to the streams: the same admission as a gateway, one hop less. For clients inside the cluster."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from fmplex.batches.calls import BatchCalls
from fmplex.call import Call
from fmplex.results import AsyncHandle, Result
from fmplex.tunes.calls import TuneCalls
from fmplex_broker.errors import BrokerUnavailable, Cancelled, DeadlineExceeded, InvalidInput
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.vfm import VfmChange
from fmplex_broker.specs.vfm_info import VfmInfo
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.queue_client import Pending, QueueClient, cancel_all, gather_replies, raise_first_error
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Reply


class DirectTransport:
    """The transport to a broker, `url`. `artifacts`: the fleet's artifact store, by default the environment's
    `FMPLEX_ARTIFACTS`; only deploying needs it. Raises `ValueError` for a URL that is none."""

    def __init__(self, url: str, artifacts: str | None) -> None:
        self._queue = QueueClient.connect(url)
        self._artifacts = artifacts or os.environ.get("FMPLEX_ARTIFACTS")

    async def _submit(self, call: Call, **params: Any) -> list[Pending]:
        try:
            async with asyncio.timeout(call.give_up_s):
                return await self._queue.submit(
                    call.vfm, call.inputs, {**call.params, **params}, cls=OFFLINE if call.offline else INTERACTIVE,
                    timeout_ms=call.timeout_ms, idempotency_key=call.idempotency_key,
                )  # fmt: skip
        except TimeoutError as e:
            raise DeadlineExceeded("the broker has not taken the call in its time") from e

    async def infer(self, call: Call) -> list[Result]:
        """Run a call; see `Transport.infer`."""
        replies = await gather_replies(await self._submit(call))
        raise_first_error(replies)
        return [_result(call, reply) for reply in replies]

    async def enqueue(self, call: Call) -> AsyncHandle:
        """Enqueue a call; see `Transport.enqueue`. The job lives on when this client is closed."""
        (pending,) = await self._submit(call)

        async def wait(timeout: float | None) -> Result:
            try:
                return _result(call, await pending.result(timeout))
            except asyncio.CancelledError:
                if pending.future.cancelled():
                    raise Cancelled("the job was cancelled") from None
                raise

        async def cancel() -> bool:
            return await pending.cancel() == "cancelled"

        return AsyncHandle(wait, cancel)

    async def stream(self, call: Call) -> AsyncGenerator[str | Result, None]:
        """Generate a text; see `Transport.stream`."""
        pending = await self._submit(call, stream=True)
        try:
            async for delta in pending[0].stream():
                if delta.text:
                    yield delta.text
            reply = await pending[0].reply()
        finally:
            with suppress(BrokerUnavailable):
                await cancel_all(pending)
        raise_first_error([reply])
        yield _result(call, reply)

    def batch_calls(self) -> BatchCalls:
        """Refuse files and batches: a gateway keeps them. Raises `InvalidInput`."""
        raise InvalidInput(
            "batches are kept by a gateway: connect with its http:// URL; straight to the broker, enqueue(offline=True) runs "
            "single jobs from spare capacity",
            field="url",
        )

    def tune_calls(self) -> TuneCalls:
        """Refuse tuning jobs: a gateway looks through their files. Raises `InvalidInput`."""
        raise InvalidInput("tuning jobs are ordered from a gateway: connect with its http:// URL", field="url")

    async def deploy(self, package: Package) -> VfmInfo:
        """Deploy a vFM; see `Transport.deploy`. Raises `InvalidInput` when the artifact store is not known."""
        return (await self._deployer().deploy(package)).describe()

    async def offer(self, name: str, package: Package) -> VfmInfo:
        """Offer a version; see `Transport.offer`. Raises `InvalidInput` when the artifact store is not known."""
        return self._changed(name, await self._deployer().update(name, package))

    async def roll_back(self, name: str, version: str | None) -> VfmInfo:
        """Serve an earlier version; see `Transport.roll_back`."""
        return self._changed(name, await self._deployer().roll_back(name, version))

    async def prune(self) -> list[str]:
        """Delete artifacts; see `Transport.prune`."""
        return await self._deployer().prune()

    def _deployer(self) -> Deployer:
        if self._artifacts is None:
            raise InvalidInput(
                "beside the broker, deploying needs the fleet's artifact store: Client(url, artifacts=…) or FMPLEX_ARTIFACTS, "
                "as in the fleet file; or deploy through a gateway",
                field="artifacts",
            )
        return Deployer(self._queue.registry, ArtifactStore(self._artifacts))

    def _changed(self, name: str, status: VfmStatus) -> VfmInfo:
        """Describe a vFM that has changed, and forget what was cached of it."""
        self._queue.forget(name)
        return status.describe()

    async def page(self, match: str, limit: int, after: str) -> tuple[list[VfmInfo], int]:
        """List vFMs; see `Transport.page`."""
        found, total = await self._queue.registry.page(match, limit, after)
        return [v.describe() for v in found], total

    async def show(self, name: str) -> VfmInfo:
        """Return a vFM; see `Transport.show`."""
        return (await self._queue.registry.show(name)).describe()

    async def update(self, name: str, change: VfmChange) -> VfmInfo:
        """Change a vFM; see `Transport.update`."""
        return self._changed(name, await self._queue.registry.change(name, change))

    async def remove(self, name: str) -> None:
        """Remove a vFM; see `Transport.remove`."""
        await self._queue.registry.remove(name)
        self._queue.forget(name)

    async def close(self) -> None:
        """Close the connection; jobs that were enqueued go on."""
        await self._queue.close()


def _result(call: Call, reply: Reply) -> Result:
    """Return the result of a call's input. Raises the error that the reply carries."""
    if reply.error is not None:
        raise reply.error
    return Result(
        reply.output, call.vfm, reply.version, reply.units,
        queue_ms=reply.queue_ms, run_ms=reply.run_ms, load_ms=reply.load_ms,
    )  # fmt: skip
