"""Gates: the lines that one vFM does not take for now are not all asked for again and again, but few at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from weakref import WeakValueDictionary

_MOST = 64  # that ask at once while nothing is refused: so many may be refused before anybody knows


class Gate:
    """The way to one vFM: many may ask at once until it refuses one. Then nobody asks for a while, and after it one, then two and
    four, as they are taken; others wait in the order in which they came."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._opens_at = 0.0  # monotonic seconds
        self._asking, self._most = 0, _MOST

    async def enter(self) -> Visit:
        """Wait until it is one's turn to ask. Whoever has asked says what came of it, and leaves."""
        async with self._turn:
            while (wait_s := self._wait_s()) != 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._changed.wait()
            self._asking += 1
        return Visit(self)

    def leave(self, *, taken: bool) -> None:
        """Note that one less is asking; `taken`: what it asked for was taken."""
        self._asking -= 1
        if taken:
            self._most = min(2 * self._most, _MOST)
        self._changed.set()

    def close(self, pause_s: float) -> None:
        """Let nobody ask for so many seconds, and one after that."""
        self._opens_at = max(self._opens_at, time.monotonic() + pause_s)
        self._most = 1

    def _wait_s(self) -> float | None:
        """Return how long to wait, 0 if one may ask; None: until something changes."""
        left_s = self._opens_at - time.monotonic()
        return left_s if left_s > 0 else 0 if self._asking < self._most else None


class Visit:
    """One that asks at a gate, and leaves it once."""

    def __init__(self, gate: Gate) -> None:
        self._gate: Gate | None = gate

    @property
    def asking(self) -> bool:
        """True until it has left."""
        return self._gate is not None

    def end(self, *, taken: bool = False) -> None:
        """Leave, unless that has been done; `taken`: what was asked for was taken."""
        if self._gate is not None:
            gate, self._gate = self._gate, None
            gate.leave(taken=taken)


class Gates:
    """The gates of those vFMs that are asked just now, by name."""

    def __init__(self) -> None:
        self._gates: WeakValueDictionary[str, Gate] = WeakValueDictionary()

    def of(self, vfm: str) -> Gate:
        """Return the gate of a vFM, whether or not there is one. It is kept as long as somebody holds it."""
        gate = self._gates.get(vfm)
        if gate is None:
            gate = self._gates[vfm] = Gate()
        return gate
