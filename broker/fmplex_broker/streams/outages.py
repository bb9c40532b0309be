"""Saying why the broker cannot be used: once, not at every try."""

from __future__ import annotations

import logging
import time

from fmplex_broker.errors import BrokerFault, FmplexError

_AGAIN_S = 60.0
_KNOWN = 32  # causes that are remembered


class Outage:
    """Logs the causes for which something cannot be done, each when it is new or a minute has passed, and that it is over."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        """Take the name of what cannot be done, as "reading replies"."""
        self._log = log
        self._what = what
        self._said: dict[str, float] = {}  # cause -> when it was said last

    def say(self, cause: FmplexError) -> None:
        """Log a cause unless that was done a short while ago."""
        now, words = time.monotonic(), str(cause)
        if now - self._said.get(words, -_AGAIN_S) >= _AGAIN_S:
            if len(self._said) >= _KNOWN:
                self._said.clear()
            self._said[words] = now
            trace = (
                cause if isinstance(cause, BrokerFault) else None
            )  # whoever mends it needs to know where it came from
            self._log.warning("%s: %s (trying again until it works)", self._what, words, exc_info=trace)

    def over(self) -> None:
        """Log that it works again, if a cause was logged before."""
        if self._said:
            self._said.clear()
            self._log.info("%s works again", self._what)
