"""One offline job through a gateway: a batch of one line."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fmplex.batches.building import prepare
from fmplex.batches.calls import BatchCalls
from fmplex.batches.core import BatchCore, begin
from fmplex.batches.records import BatchInfo
from fmplex.batches.rows import read_row
from fmplex.call import Call
from fmplex.following import PAGE
from fmplex.results import AsyncHandle, Result
from fmplex_broker.errors import Cancelled, Conflict

T = TypeVar("T")
_KEY, _DIGEST = "idempotency_key", "call"  # of its metadata
_LEAST_MIN = 5  # of a completion window


async def enqueue_alone(calls: BatchCalls, call: Call) -> AsyncHandle:
    """Begin a batch with the only input of a call; return the job. A call with the idempotency key of one of the newest
    batches is that one. Raises `Conflict` if that was another call."""

    async def ask(send: Callable[[BatchCalls], Awaitable[T]], /) -> T:
        return await send(calls)

    told = {_KEY: call.idempotency_key, _DIGEST: _digest(call)}
    info = await _known(calls, told)
    if info is None:
        deadline = {} if call.timeout_ms is None else {"timeout_ms": call.timeout_ms}
        with prepare(call.inputs, call.vfm, call.params, "text", **deadline) as source:
            info = await begin(ask, source, _window(call.timeout_ms), told)
    job = _Job(BatchCore(ask, info))
    return AsyncHandle(job.result, job.cancel)


def _digest(call: Call) -> str:
    """Return what tells a call from others, whatever is left of its time."""
    with prepare(call.inputs, call.vfm, call.params, "text") as source:
        source.file.seek(0)
        return hashlib.sha256(source.file.read()).hexdigest()


def _window(timeout_ms: float | None) -> str:
    return "24h" if timeout_ms is None else f"{max(_LEAST_MIN, math.ceil(timeout_ms / 60_000))}m"


async def _known(calls: BatchCalls, told: dict[str, str]) -> BatchInfo | None:
    for info in (await calls.page(PAGE, None))[0]:
        metadata = info.metadata or {}
        if metadata.get(_KEY) == told[_KEY] and _DIGEST in metadata:
            if metadata != told:
                raise Conflict("the idempotency key was used for another call; give another one", field=_KEY)
            return info
    return None


class _Job:
    """The only line of a batch, as a job."""

    def __init__(self, core: BatchCore) -> None:
        self._core = core
        self._row: dict[str, Any] | None = None

    async def result(self, timeout: float | None) -> Result:
        """Wait for the result; see `AsyncHandle.result`."""
        if self._row is None:
            await self._core.wait(timeout)
            with await self._core.rows() as rows:
                self._row = next(rows.raw(), None)
        if self._row is None:
            raise Cancelled("the job was cancelled")  # before anybody had looked at it
        line = read_row(self._row)
        if line.error is not None:
            raise line.error
        body = self._row["response"]["body"]
        run = body["runs"][0]
        return Result(
            line.output, body["vfm"], run["version"], run["units"],
            queue_ms=run["queue_ms"], run_ms=run["run_ms"], load_ms=run["load_ms"],
        )  # fmt: skip

    async def cancel(self) -> bool:
        """Cancel the job; see `AsyncHandle.cancel`."""
        await self._core.cancel()
        await self._core.wait(None)
        return self._core.info.status == "cancelled" and not self._core.info.request_counts.completed
