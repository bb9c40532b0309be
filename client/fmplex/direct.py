"""Straight to the streams: the same admission as a gateway, one hop less. For clients inside the cluster."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from fmplex.results import AsyncHandle, Result
from fmplex_broker.errors import BrokerUnavailable, Cancelled, InvalidInput
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.vfm import VfmChange
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.queue_client import QueueClient, cancel_all, gather_replies, raise_first_error
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Reply


class DirectTransport:
    def __init__(self, url: str, artifacts: str | None) -> None:
        self._session = QueueClient.connect(url)
        self._artifacts = artifacts or os.environ.get("FMPLEX_ARTIFACTS")

    async def infer(
        self, vfm: str, inputs: list[Any], params: dict[str, Any], timeout_ms: float | None, idempotency_key: str
    ) -> list[Result]:
        pending = await self._session.submit(
            vfm, inputs, params, timeout_ms=timeout_ms, idempotency_key=idempotency_key
        )
        replies = await gather_replies(pending)
        raise_first_error(replies)
        return [_result(reply) for reply in replies]

    async def enqueue(
        self,
        vfm: str,
        value: Any,
        params: dict[str, Any],
        timeout_ms: float | None,
        idempotency_key: str,
        offline: bool,
    ) -> AsyncHandle:
        cls = OFFLINE if offline else INTERACTIVE
        pending = (
            await self._session.submit(
                vfm, [value], params, cls=cls, timeout_ms=timeout_ms, idempotency_key=idempotency_key
            )
        )[0]

        async def wait(timeout: float | None) -> Result:
            try:
                return _result(await pending.result(timeout))
            except asyncio.CancelledError:
                if pending.future.cancelled():
                    raise Cancelled("the job was cancelled") from None
                raise

        async def cancel() -> bool:
            return await pending.cancel() == "cancelled"

        return AsyncHandle(wait, cancel)

    async def stream(
        self, vfm: str, value: Any, params: dict[str, Any], timeout_ms: float | None, idempotency_key: str
    ) -> AsyncGenerator[str | Result, None]:
        pending = await self._session.submit(
            vfm, [value], params | {"stream": True}, timeout_ms=timeout_ms, idempotency_key=idempotency_key
        )
        try:
            async for delta in pending[0].stream():
                if delta.text:
                    yield delta.text
            reply = await pending[0].reply()
        finally:
            with suppress(BrokerUnavailable):
                await cancel_all(pending)
        raise_first_error([reply])
        yield _result(reply)

    async def deploy(self, package: Package) -> dict[str, Any]:
        return (await self._deployer().deploy(package)).describe()

    async def offer(self, name: str, package: Package) -> dict[str, Any]:
        return self._changed(name, await self._deployer().update(name, package))

    async def roll_back(self, name: str, version: str | None) -> dict[str, Any]:
        return self._changed(name, await self._deployer().roll_back(name, version))

    async def prune(self) -> list[str]:
        return await self._deployer().prune()

    def _deployer(self) -> Deployer:
        if self._artifacts is None:
            raise InvalidInput(
                "beside the broker, deploying needs the fleet's artifact store: Client(url, artifacts=…) or FMPLEX_ARTIFACTS, "
                "as in the fleet file; or deploy through a gateway",
                field="artifacts",
            )
        return Deployer(self._session.registry, ArtifactStore(self._artifacts))

    def _changed(self, name: str, status: VfmStatus) -> dict[str, Any]:
        self._session.forget(name)
        return status.describe()

    async def page(self, match: str, limit: int, after: str) -> tuple[list[dict[str, Any]], int]:
        found, total = await self._session.registry.page(match, limit, after)
        return [v.describe() for v in found], total

    async def show(self, name: str) -> dict[str, Any]:
        return (await self._session.registry.show(name)).describe()

    async def update(self, name: str, change: VfmChange) -> dict[str, Any]:
        return self._changed(name, await self._session.registry.change(name, change))

    async def remove(self, name: str) -> None:
        await self._session.registry.remove(name)
        self._session.forget(name)

    async def close(self) -> None:
        await self._session.close()


def _result(reply: Reply) -> Result:
    if reply.error is not None:
        raise reply.error
    return Result(reply.output, reply.version)
