"""What the fleet serves, as far as it matters here: votes on offered versions, lets go of replaced and removed ones."""

from __future__ import annotations

import asyncio
import logging

from fmplex_broker.errors import BrokerUnavailable, FmplexError, Unavailable
from fmplex_broker.specs.versions import artifact_of, is_stale, stale_error
from fmplex_broker.streams.outages import Outage
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.messages import CLASSES, Flow
from fmplex_worker.host.version_loads import VersionLoads
from fmplex_worker.scheduling import Scheduler

log = logging.getLogger(__name__)
_BACKOFF_S = 0.5
_LOOK_AGAIN_S = 1.0


class DeploymentFollower:
    """Follows the registry's feed of changes, which is a hint: the counter that every beat tells is the truth, and a gap in it is
    healed by a snapshot. The snapshot reads what is on offer and what is known here, never all that is registered: a version
    that serves is loaded when its first job comes, whatever this worker has heard of it.
    """

    def __init__(
        self, registry: Registry, backbone: str, scheduler: Scheduler, loads: VersionLoads, hosted: str
    ) -> None:
        """`hosted`: the fingerprint of what this worker hosts."""
        self._registry = registry
        self._hosted = hosted
        self._backbone = backbone
        self._scheduler = scheduler
        self._loads = loads
        self._residents = loads.residents
        self._seen = -1  # changes up to this one are known
        self._promised = -1  # … and up to this one there have been
        self._heard: dict[str, None] = {}  # vFMs that have changed, oldest first
        self._gap = True
        self._outage = Outage(log, "following deployments")
        self._rung = asyncio.Event()
        self._rung.set()

    def count(self, counter: int) -> None:
        """Take in the counter of changes, as a beat tells it. A change that is not heard of by the next beat was lost."""
        if self._seen < self._promised:
            self._seen = self._promised
            self._note_gap()
        self._promised = counter

    def note(self, changes: list[tuple[int, str]]) -> None:
        """Take in entries of the feed: the counter after a change, and the vFM that has changed."""
        for counter, vfm in changes:
            # A number that was seen before is no reason to look away: a server that lost its last second counts it again.
            self._heard[vfm] = None
            self._gap = self._gap or counter > self._seen + 1
            self._seen = counter
            self._rung.set()

    def _note_gap(self) -> None:
        self._gap = True
        self._rung.set()

    async def follow(self, worker: str) -> None:
        """Look again whenever something changed; for ever."""
        while True:
            await self._rung.wait()
            self._rung.clear()
            await self.catch_up(worker)

    async def catch_up(self, worker: str) -> None:
        """Catch up with what is deployed, trying again while the broker is away."""
        while True:
            try:
                await self._sync(worker)
                self._outage.over()
                return
            except BrokerUnavailable as e:
                self._outage.say(e)
                self._gap = True
                await asyncio.sleep(_BACKOFF_S)

    async def _sync(self, worker: str) -> None:
        gap, heard = self._gap, list(self._heard)
        self._gap, self._heard = False, {}
        if gap:
            heard += [*self._residents.known(), *await self._registry.offers(self._backbone)]
        names = list(dict.fromkeys(heard))
        for name, now in (await self._registry.deployed(self._backbone, names)).items():
            if now is None:
                self._forget(name)
                continue
            if now.version:
                self._residents.serves(name, artifact_of(now.version))
                self._scheduler.set_weight(name, now.weight)
            if now.offered:
                await self._judge(name, now.offered, worker)

    async def _judge(self, vfm: str, version: str, worker: str) -> None:
        """Load an offered version and vote; whatever goes wrong with it is the vFM's misfortune, not the worker's:
        once workers have died of it, it is refused by name."""
        refusal: FmplexError | None = None
        artifact = artifact_of(version)
        try:
            if is_stale(version, self._hosted):
                raise stale_error(vfm, version, self._hosted)
            await self._loads.load(vfm, version, offered=True)
        except Unavailable as e:  # the store is away, which says nothing of the version: look again
            log.warning("vFM %s version %s cannot be judged yet: %s", vfm, version, e)
            asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._note_gap)
            return
        except FmplexError as e:
            refusal = e
        try:
            state = await self._registry.vote(self._backbone, vfm, version, worker, refusal)
            if state == "serving":
                self._residents.serves(vfm, artifact)
        finally:
            if refusal is None:
                self._residents.unpin(artifact)
        log.info("vFM %s version %s: %s", vfm, version, refusal or state)

    def _forget(self, vfm: str) -> None:
        self._residents.forget(vfm)
        if not any(self._scheduler.pending(Flow(vfm, cls)) for cls in CLASSES):
            self._scheduler.forget(vfm)
