"""Loading versions, with the broker's record of which: a version that workers die of is not tried for ever."""

from __future__ import annotations

import logging
from collections import OrderedDict

from fmplex_broker.errors import BrokerUnavailable, FmplexError, PackageRejected
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.consumer import Consumer
from fmplex_worker.residency.residents import Residents

log = logging.getLogger(__name__)
_KNOWN = 4096


class VersionLoads:
    """Brings versions to the device. `most_deaths`: so many workers may die while they load a version before it is refused, for
    some minutes after the last one."""

    def __init__(self, consumer: Consumer, residents: Residents, most_deaths: int) -> None:
        self.residents = residents
        self._consumer = consumer
        self._most = most_deaths
        self._now: dict[tuple[str, str], int] = {}  # (vFM, version) -> how many wait for it
        self._survived: OrderedDict[str, None] = OrderedDict()  # artifacts that were loaded in this life

    async def load(self, vfm: str, version: str) -> None:
        """Bring a version here and pin it once for the caller. Raises `PackageRejected`, `Unavailable` or `JobFailed`."""
        artifact = artifact_of(version)
        if self.residents.has(artifact) or artifact in self._survived:
            return await self.residents.load(artifact, vfm)
        key = vfm, version
        self._now[key] = self._now.get(key, 0) + 1
        try:
            deaths = await self._tell(vfm, version)
            if deaths >= self._most:
                raise PackageRejected(
                    f"{deaths} workers have died while they loaded version {version} of {vfm!r}; deploy another one",
                    field="package",
                )
            await self.residents.load(artifact, vfm)
        except FmplexError:
            await self._end(key)
            raise
        self._survived[artifact] = None
        if len(self._survived) > _KNOWN:
            self._survived.popitem(last=False)
        await self._end(key)

    async def _end(self, key: tuple[str, str]) -> None:
        self._now[key] -= 1
        if not self._now[key]:
            del self._now[key]
            await self._tell(*key)

    async def _tell(self, vfm: str, version: str) -> int:
        """Tell what is being loaded now; return how many have died of one version. A broker that is away is no reason to wait."""
        try:
            return await self._consumer.loading(list(self._now), vfm, version)
        except BrokerUnavailable as e:
            log.warning("vFM %s version %s: nobody knows that it is being loaded: %s", vfm, version, e)
            return 0
