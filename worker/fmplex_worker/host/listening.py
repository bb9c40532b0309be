"""What the broker says to a worker between its claims: that there is work, who gave up, which vFMs have changed."""

from __future__ import annotations

import asyncio
import logging

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams.consumer import Consumer, Signals
from fmplex_broker.streams.outages import Outage
from fmplex_worker.host.deployments import DeploymentFollower
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.intake import Intake

log = logging.getLogger(__name__)
_BACKOFF_S = 0.5


class Listener:
    """Passes on what is heard. `consumer` has a connection of its own: it blocks."""

    def __init__(
        self, consumer: Consumer, intake: Intake, deployments: DeploymentFollower, dispatcher: Dispatcher
    ) -> None:
        self._consumer = consumer
        self._intake = intake
        self._deployments = deployments
        self._dispatcher = dispatcher

    async def run(self) -> None:
        """Listen, for ever."""
        outage = Outage(log, "listening")
        while True:
            try:
                signals = await self._consumer.listen()
                outage.over()
            except BrokerUnavailable as e:
                outage.say(e)
                await asyncio.sleep(_BACKOFF_S)
                signals = Signals(True, [], [])  # whatever was said meanwhile; the next beats tell of changes
            if signals.woken:
                self._intake.ring()
            self._deployments.note(signals.changed)
            for key in signals.cancelled:
                self._dispatcher.cancel(key)
