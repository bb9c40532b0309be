"""Work for a client, for as long as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from fmplex_gateway.receiving import ClientDisconnected

T = TypeVar("T")


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
