"""Good requests that run beside a test, and notice the smallest thing that happens to them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from fmplex import AsyncClient, FmplexError
from tests.support.outputs import difference
from tests.support.waiting import wait_until


class Traffic:
    """A thread that asks every vFM for what it knows the answers to, round after round, until closed.

    `wanted`: per vFM its inputs and the reference outputs. A round is one request to each vFM, all at once.
    """

    def __init__(self, url: str, wanted: dict[str, tuple[list[Any], list[Any]]]) -> None:
        self._url = url
        self._wanted = wanted
        self._stop = threading.Event()
        self.rounds = 0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic")
        self._thread.start()

    async def _run(self) -> None:
        async with AsyncClient(self._url, retries=0) as client:
            while not self._stop.is_set():
                await asyncio.gather(*(self._ask(client, name) for name in self._wanted))
                self.rounds += 1

    async def _ask(self, client: AsyncClient, name: str) -> None:
        inputs, wanted = self._wanted[name]
        at = self.rounds % len(inputs)
        try:
            output = (await client.infer(name, inputs[at], timeout=120)).output
        except FmplexError as e:
            self.failures.append(f"{name} failed: {e.code}: {e}")
            return
        if (off := difference(output, wanted[at])) > 1e-5:
            self.failures.append(f"{name} answered {output}, off by {off}")

    def check(self, since: int) -> None:
        """At least one whole round has run after round `since`, and nothing ever went wrong."""
        wait_until(lambda: self.rounds >= since + 2 or not self._thread.is_alive(), "the good requests went on")
        assert self.failures == [], self.failures[:3]
        assert self._thread.is_alive()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
