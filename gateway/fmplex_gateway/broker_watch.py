"""Saying in the log that the broker cannot be used, and that it can again, whether or not anybody calls meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fmplex_broker.errors import FmplexError
from fmplex_broker.streams.catalog import Catalog
from fmplex_broker.streams.outages import Outage

log = logging.getLogger(__name__)
_EVERY_S = 1.0


@asynccontextmanager
async def watching(catalog: Catalog) -> AsyncIterator[None]:
    """Look once a second whether the broker answers, while the context is open."""
    task = asyncio.create_task(_watch(catalog))
    try:
        yield
    finally:
        while not task.done():  # `asyncio.wait_for` of Python 3.11 may lose a cancellation
            task.cancel()
            await asyncio.wait([task], timeout=0.1)


async def _watch(catalog: Catalog) -> None:
    outage = Outage(log, "not ready")
    while True:
        try:
            await catalog.backbones()
            outage.over()
        except FmplexError as e:
            outage.say(e)
        await asyncio.sleep(_EVERY_S)
