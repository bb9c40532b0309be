"""A short-lived cache of vFM statuses in front of the catalog."""

from __future__ import annotations

import asyncio
import time

from fmplex_broker.errors import BrokerUnavailable, UnknownVfm
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.streams.catalog import Catalog

_AGAIN_S = 0.1


class VfmCache:
    """Statuses of vFMs, none older than `ttl_s`; all who ask for one at the same time share one read."""

    def __init__(self, catalog: Catalog, ttl_s: float) -> None:
        self._catalog = catalog
        self._ttl_s = ttl_s
        self._known: dict[str, tuple[VfmStatus, float]] = {}
        self._reads: dict[str, asyncio.Task[VfmStatus]] = {}

    async def get(self, name: str) -> VfmStatus:
        """Return a vFM's status. Raises `UnknownVfm`, `BrokerUnavailable`."""
        known = self._known.get(name)
        if known is not None and time.monotonic() - known[1] < self._ttl_s:
            return known[0]
        read = self._reads.get(name)
        if read is None:
            read = self._reads[name] = asyncio.create_task(self._read(name))
            read.add_done_callback(lambda t: t.cancelled() or t.exception())  # those who asked may have gone
        return await asyncio.shield(read)

    def forget(self, name: str) -> None:
        """Drop what is cached of a vFM, because it was changed."""
        self._known.pop(name, None)

    async def _read(self, name: str) -> VfmStatus:
        try:
            try:
                status = await self._catalog.show(name)
            except BrokerUnavailable:  # a connection that broke is no reason to refuse a call
                await asyncio.sleep(_AGAIN_S)
                status = await self._catalog.show(name)
        except UnknownVfm:
            self._known.pop(name, None)
            raise
        finally:
            del self._reads[name]
        self._known[name] = (status, time.monotonic())
        return status
