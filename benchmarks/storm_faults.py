"""The faults of a storm: which there are, in which order a seed lets them come, and how each is done to a fleet."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from benchmarks.storm_server import Refusals
from benchmarks.storm_site import LEASE_S, SDK, Site

Place = Literal["worker", "gateway", "server", "connections"]
_SERVER = "server"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. `lasts`: from how many to how many seconds, drawn anew each time; (0, 0): it has no end, and recovery is
    counted from its beginning. `goal_s`: seconds within which the fleet should have recovered, None: there is no goal."""

    place: Place
    lasts: tuple[float, float] = (0.0, 0.0)
    goal_s: float | None = None


_WITHIN, _BEYOND = (0.2 * LEASE_S, 0.6 * LEASE_S), (1.3 * LEASE_S, 1.8 * LEASE_S)
_SOME = (0.3 * LEASE_S, 1.6 * LEASE_S)  # shorter than a lease, or longer

KINDS: dict[str, Kind] = {
    "worker_sigkill": Kind("worker", goal_s=LEASE_S + 2),
    "worker_sigterm": Kind("worker"),
    "worker_sigstop_within_lease": Kind("worker", _WITHIN),
    "worker_sigstop_beyond_lease": Kind("worker", _BEYOND),
    "gateway_sigkill": Kind("gateway"),
    "gateway_sigterm": Kind("gateway"),
    "gateway_sigstop_within_lease": Kind("gateway", _WITHIN),
    "gateway_sigstop_beyond_lease": Kind("gateway", _BEYOND),
    "server_restart": Kind("server", (0.01, 0.5), goal_s=3.0),
    "server_away": Kind("server", (5.0, 5.5), goal_s=3.0),
    **{
        name: Kind("server", _SOME) for name in ("misconf", "noreplicas", "busy", "readonly", "maxclients", "maxmemory")
    },
    "cut": Kind("connections"),
    "half_open": Kind("connections", goal_s=2 * LEASE_S),
    "stalled": Kind("connections", _SOME),
    "accepted_then_reset": Kind("connections", _SOME),
}
QUICK = ("worker_sigkill", "gateway_sigterm", "server_restart", "misconf", "half_open")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its kind, on what (a process, `sdk` or `server`), and how many seconds it lasts (0: it has no end)."""

    kind: str
    on: str
    seconds: float

    @property
    def ends_process(self) -> bool:
        """True if the process that it hits does not survive it."""
        return self.kind.endswith(("_sigkill", "_sigterm"))

    def __str__(self) -> str:
        return f"{self.kind} on {self.on}" + (f" for {self.seconds:.2f} s" if self.seconds else "")


def schedule(seed: int, kinds: Sequence[str], site: Site, times: int) -> list[Fault]:
    """Draw every kind so many times, in the order of a seed: the same seed, the same faults."""
    rng = random.Random(seed)
    victims = {kind: _victims(KINDS[kind].place, site, rng) for kind in kinds}
    drawn = [kind for kind in kinds for _ in range(times)]
    rng.shuffle(drawn)
    return [Fault(kind, next(victims[kind]), round(rng.uniform(*KINDS[kind].lasts), 2)) for kind in drawn]


def _victims(place: Place, site: Site, rng: random.Random) -> Iterator[str]:
    """Yield who is hit, for ever and each in turn; of connections a worker's and a caller's in turn."""
    groups: dict[Place, list[list[str]]] = {
        "worker": [site.workers],
        "gateway": [site.gateways],
        "server": [[_SERVER]],
        "connections": [site.workers, [*site.gateways, SDK]],
    }
    turns = [rng.sample(group, len(group)) for group in groups[place]]
    for each in zip(*map(itertools.cycle, turns), strict=True):
        yield from each


class Faults:
    """Does faults to a site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._refusals = Refusals(site.server)

    def __call__(self, fault: Fault) -> AbstractAsyncContextManager[None]:
        """Return the fault as a context manager: it has come once that is entered, and is over at its end."""
        match KINDS[fault.kind].place:
            case "server" if fault.kind.startswith("server_"):
                return self._no_server(refused=fault.kind == "server_away")
            case "server":
                return self._refusals(fault.kind)
            case "connections":
                return self._broken(fault)
            case _:
                return self._hit(fault)

    @asynccontextmanager
    async def _hit(self, fault: Fault) -> AsyncIterator[None]:
        """Signal a process; one that ends is started again."""
        how = fault.kind.split("_")[1]
        if how != "sigstop":
            await self._site.end(fault.on, signal.Signals[how.upper()])
            yield
            return
        member = self._site.members[fault.on]
        member.send(signal.SIGSTOP)
        try:
            yield
        finally:
            member.send(signal.SIGCONT)

    @asynccontextmanager
    async def _no_server(self, refused: bool) -> AsyncIterator[None]:
        """Kill the server; start it again from its file. `refused`: nobody listens meanwhile; else, as behind a load balancer,
        connections are accepted and closed."""
        await asyncio.to_thread(self._site.server.kill)
        if refused:
            for proxy in self._site.proxies.values():
                proxy.refuse()
        try:
            yield
        finally:
            await asyncio.to_thread(self._site.server.start)
            for proxy in self._site.proxies.values():
                proxy.listen()

    @asynccontextmanager
    async def _broken(self, fault: Fault) -> AsyncIterator[None]:
        """Break the connections of one process."""
        proxy = self._site.proxies[fault.on]
        begin = {"cut": proxy.cut, "half_open": proxy.silence, "stalled": proxy.stall}
        begin.get(fault.kind, proxy.reset_new)()
        try:
            yield
        finally:
            proxy.resume()
            proxy.listen()
