"""Straight to the streams: the same admission as a gateway, one hop less. For clients inside the cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fmplex.results import AsyncHandle, Result
from fmplex_broker.errors import Cancelled, InvalidInput
from fmplex_broker.messages import INTERACTIVE, OFFLINE, Reply
from fmplex_broker.packages import bare, read_package
from fmplex_broker.specs import VfmChange, VfmSpec
from fmplex_broker.streams.session import Session, gather_replies, raise_first_error


class DirectTransport:
    def __init__(self, url: str) -> None:
        self._session = Session.connect(url)

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

    async def deploy(self, package: Path | None, spec: VfmSpec | None) -> dict[str, Any]:
        if package is not None:
            read = await asyncio.to_thread(read_package, package)
            status = await self._session.registry.deploy(read.spec, read.digest, str(package.resolve()))
        elif spec is not None:
            status = await self._session.registry.deploy(spec, bare(spec).digest, None)
        else:
            raise InvalidInput("give a package folder or a spec", field="package")
        return status.describe()

    async def all(self) -> list[dict[str, Any]]:
        return [v.describe() for v in await self._session.registry.all()]

    async def show(self, name: str) -> dict[str, Any]:
        return (await self._session.registry.show(name)).describe()

    async def update(self, name: str, change: VfmChange) -> dict[str, Any]:
        version = None
        if change.package is not None:
            change = change.model_copy(update={"package": str(Path(change.package).resolve())})
            read = await asyncio.to_thread(read_package, Path(str(change.package)))
            version = (read.spec, read.digest)
        status = await self._session.registry.change(name, change, version=version)
        self._session.forget(name)
        return status.describe()

    async def remove(self, name: str) -> None:
        await self._session.registry.remove(name)
        self._session.forget(name)

    async def close(self) -> None:
        await self._session.close()


def _result(reply: Reply) -> Result:
    if reply.error is not None:
        raise reply.error
    return Result(reply.output, reply.version)
