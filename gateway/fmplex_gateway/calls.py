"""One call: submit its inputs, wait for all the replies, and take the jobs back if the client hangs up meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from fmplex_broker.streams.queue_client import QueueClient, gather_replies, raise_first_error
from fmplex_broker.wire.messages import Reply
from fmplex_gateway.wire import Gone

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
    """Replies in the order of `inputs`. Raises the first error among them, what `Session.submit` raises, or `Gone`."""
    session: QueueClient = request.app.state.session
    pending = await session.submit(vfm, inputs, params, timeout_ms=timeout_ms, idempotency_key=idempotency_key)
    replies = await unless_gone(request.receive, gather_replies(pending))
    raise_first_error(replies)
    return replies


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. If the client hangs up first, the work is cancelled and has ended when this raises `Gone`."""
    working = asyncio.ensure_future(work)
    hung_up = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({working, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        for task in (working, hung_up):
            task.cancel()
        # Let the cancellation reach the broker before the request is over.
        await asyncio.gather(working, hung_up, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    """Returns when the client has gone. The body has been read, so the only message left is the disconnect."""
    while (await receive())["type"] != "http.disconnect":
        pass
