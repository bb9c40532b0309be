"""Passes as long as the latency targets of the vFMs allow."""

from __future__ import annotations

import asyncio
import logging
import time

from fmplex_worker.host.claim_room import ClaimRoom
from fmplex_worker.protocol import Engine
from fmplex_worker.scheduling import PassBudget, Scheduler

log = logging.getLogger(__name__)
_EVERY_S = 1.0


class BudgetSetting:
    """Puts the pass budget that follows from the targets where passes are planned, claimed for and cut into pieces for."""

    def __init__(self, budget: PassBudget, scheduler: Scheduler, room: ClaimRoom, engine: Engine) -> None:
        self._budget = budget
        self._scheduler = scheduler
        self._room = room
        self._engine = engine
        self._missed: list[str] = []  # vFMs whose latency targets no pass is short enough for

    async def run(self) -> None:
        """Follow the targets, for ever."""
        while True:
            self._set()
            await asyncio.sleep(_EVERY_S)

    def _set(self) -> None:
        units = self._budget.units(time.monotonic())
        if units != self._scheduler.budget:
            log.info("pass budget: %d units", units)
            self._scheduler.budget = self._room.pass_units = units
            self._engine.aim(units)
        missed = self._budget.missed_targets()
        for vfm in set(missed) - set(self._missed):
            log.warning("the latency target of vFM %s is too short for passes of %d units", vfm, self._budget.least)
        self._missed = missed
