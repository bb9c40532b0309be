"""Loading versions, with the broker's record of which: one that workers die of is not tried for ever, nor by all at once."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict
from typing import Literal

from fmplex_broker.errors import BrokerUnavailable, FmplexError, PackageRejected
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.consumer import Consumer
from fmplex_worker.residency.residents import Residents

log = logging.getLogger(__name__)
_KNOWN = 4096
_LOOK_AGAIN_S = 0.05


class VersionLoads:
    """Brings versions to the device. `most_deaths`: so many workers may die while they load a version before it is refused, for
    some minutes after the last one; `lease_s`: after which a worker that is not heard of is dead."""

    def __init__(self, consumer: Consumer, residents: Residents, most_deaths: int, lease_s: float) -> None:
        self.residents = residents
        self._consumer = consumer
        self._most = most_deaths
        self._lease_s = lease_s
        self._now: Counter[tuple[str, str]] = Counter()  # (vFM, version) -> how many wait for it
        self._survived: OrderedDict[str, None] = OrderedDict()  # artifacts that were loaded in this life

    async def load(self, vfm: str, version: str, *, offered: bool = False) -> None:
        """Bring a version here and pin it once for the caller; `offered`: only while it is on offer.

        Raises `PackageRejected`, `Unavailable` or `JobFailed`.
        """
        artifact = artifact_of(version)
        if self.residents.has(artifact) or artifact in self._survived:
            return await self.residents.load(artifact, vfm)
        deaths = await self._begin(vfm, version, offered)
        try:
            if deaths < 0:
                raise PackageRejected(f"version {version} of {vfm!r} is not on offer any more", field="package")
            if deaths >= self._most:
                raise PackageRejected(
                    f"{deaths} workers have died while they loaded version {version} of {vfm!r}; deploy another one",
                    field="package",
                )
            await self.residents.load(artifact, vfm)
        except FmplexError:
            await self._end(vfm, version)
            raise
        self._survived[artifact] = None
        if len(self._survived) > _KNOWN:
            self._survived.popitem(last=False)
        await self._end(vfm, version)

    async def _begin(self, vfm: str, version: str, offered: bool) -> int:
        """Wait until it is this worker's turn, and tell that it loads the version; return how many have died of that."""
        does: Literal["begin", "try"] = "try" if offered else "begin"
        waits_for, until = "", math.inf
        while True:
            self._now[vfm, version] += 1
            # Who has lived for so long is only slow: had it died of it, its lease would have run out.
            deaths, trying = await self._tell(vfm, version, does if time.monotonic() < until else "insist")
            if not trying:
                return deaths
            if trying != waits_for:
                waits_for, until = trying, time.monotonic() + 2 * self._lease_s
            self._leave(vfm, version)
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _end(self, vfm: str, version: str) -> None:
        if not self._leave(vfm, version):
            await self._tell(vfm, version, "end")

    def _leave(self, vfm: str, version: str) -> int:
        """Count one less that waits for a version; return how many are left."""
        self._now[vfm, version] -= 1
        left = self._now[vfm, version]
        if not left:
            del self._now[vfm, version]
        return left

    async def _tell(self, vfm: str, version: str, does: Literal["begin", "try", "insist", "end"]) -> tuple[int, str]:
        """Tell what is being loaded; return how many have died of it, and whom to wait for: nobody if the broker is away."""
        others = [loading for loading in self._now if loading != (vfm, version)]
        try:
            return await self._consumer.loading(vfm, version, does, others)
        except BrokerUnavailable as e:
            log.warning("vFM %s version %s: nobody knows that it is being loaded: %s", vfm, version, e)
            return 0, ""
