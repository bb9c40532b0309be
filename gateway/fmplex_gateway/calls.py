"""One call: submit its inputs, wait for all the replies, and take the jobs back if the client hangs up meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request

from fmplex_broker.messages import Reply
from fmplex_broker.streams.session import Pending, Session, gather_replies, raise_first_error
from fmplex_gateway.wire import Gone


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
    session: Session = request.app.state.session
    pending = await session.submit(vfm, inputs, params, timeout_ms=timeout_ms, idempotency_key=idempotency_key)
    replies = await _unless_gone(request, pending)
    raise_first_error(replies)
    return replies


async def _unless_gone(request: Request, pending: list[Pending]) -> list[Reply]:
    waiting = asyncio.ensure_future(gather_replies(pending))
    hung_up = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({waiting, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        raise Gone
    finally:
        for task in (waiting, hung_up):
            task.cancel()
        # Let the cancellation reach the broker before the request is over.
        await asyncio.gather(waiting, hung_up, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    """Returns when the client has gone. The body has been read, so the only message left is the disconnect."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
