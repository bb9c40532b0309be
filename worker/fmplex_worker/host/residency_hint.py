"""The claims' hint of what is resident on this worker, kept up to date."""

from __future__ import annotations

import asyncio
import logging
import time

from fmplex_broker.errors import FmplexError
from fmplex_broker.streams.consumer import HERE_TTL_MS, Consumer
from fmplex_broker.streams.outages import Outage
from fmplex_worker.residency.residents import Residents

log = logging.getLogger(__name__)
_EVERY_S = 0.1
_REFRESH_S = HERE_TTL_MS / 3000


class ResidencyHint:
    """Tells the broker which vFMs are resident here: other workers leave them to this one for a while."""

    def __init__(self, consumer: Consumer, residents: Residents) -> None:
        self._consumer = consumer
        self._residents = residents

    async def run(self) -> None:
        """Send what changes, and all of it before the hint runs out; for ever. It is a hint: no error of it ends anything."""
        outage = Outage(log, "telling what is resident")
        told: set[str] = set()
        refreshed = 0.0
        while True:
            here = self._residents.here()
            due = time.monotonic() > refreshed + _REFRESH_S
            try:
                if due or here != told:
                    await self._consumer.announce_resident(sorted(here if due else here - told), sorted(told - here))
                    refreshed = time.monotonic() if due else refreshed
                    outage.over()
                told = here
            except FmplexError as e:
                outage.say(e)
                told |= here  # which of it has arrived is not known
                refreshed = 0.0
            await asyncio.sleep(_EVERY_S)
