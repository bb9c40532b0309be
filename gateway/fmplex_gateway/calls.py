"""One call: submit its inputs, wait for all the replies, and cancel the jobs if the client disconnects meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from fmplex_broker.streams.queue_client import QueueClient, gather_replies, raise_first_error
from fmplex_broker.wire.messages import Reply
from fmplex_gateway.receiving import ClientDisconnected

T = TypeVar("T")


async def call(
    request: Request,
    vfm: str,
    inputs: list[Any],
    params: dict[str, Any],
    *,
    timeout_ms: float | None = None,
    idempotency_key: str | None = None,
) -> list[Reply]:
    """Run inputs through a vFM; return the replies in the order of `inputs`.

    Raises the first error among them, what `QueueClient.submit` raises, or `ClientDisconnected`.
    """
    queue: QueueClient = request.app.state.queue
    pending = await queue.submit(vfm, inputs, params, timeout_ms=timeout_ms, idempotency_key=idempotency_key)
    replies = await unless_disconnected(request.receive, gather_replies(pending))
    raise_first_error(replies)
    return replies


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run some work; return its result. If the client disconnects first, the work is cancelled and has ended when this raises
    `ClientDisconnected`."""
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected
    finally:
        for each in (task, disconnected):
            each.cancel()
        # Let the cancellation reach the broker before the request is over.
        await asyncio.gather(task, disconnected, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    """Wait until the client disconnects. The body has been read, so the only message left is the disconnect."""
    while (await receive())["type"] != "http.disconnect":
        pass
