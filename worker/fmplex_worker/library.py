"""Which versions this worker has on its device: follows the fleet's deployments, votes on offered ones."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor
from pathlib import Path

from fmplex_broker.deployments import Deployment, VfmStatus
from fmplex_broker.errors import BrokerUnavailable, FmplexError, JobFailed, PackageRejected
from fmplex_broker.packages import Package, bare, read_package
from fmplex_broker.streams.registry import Registry
from fmplex_worker.engines.protocol import Engine
from fmplex_worker.scheduling import Scheduler

log = logging.getLogger(__name__)
_BACKOFF_S = 0.5
_RETRY_LOADING_S = 10.0
_KEEP_REPLACED_S = 60.0  # at least; longer if the vFM's deadline is


class Library:
    """Keeps the engine's resident versions in step with the registry.

    A replaced version stays until no job stamped with it can still be alive (the vFM's deadline); a job that was given a
    longer deadline than that and waits longer gets a typed error, never a wrong version.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        backbone: str,
        roots: tuple[Path, ...],
        scheduler: Scheduler,
        thread: Executor,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._backbone = backbone
        self._roots = roots
        self._scheduler = scheduler
        self._serving: dict[str, VfmStatus] = {}
        self._replaced: dict[str, float] = {}  # version -> when it may go (monotonic seconds)
        self._here = set(engine.loaded)  # an earlier life may have loaded them
        self._missing: dict[str, tuple[FmplexError, float]] = {}  # version -> why, and when to try again
        self._seen = -1
        self._lock = asyncio.Lock()
        self._loader = thread
        self.changed = asyncio.Event()

    def note(self, changes: int) -> None:
        """The registry's change counter, as the last beat told it."""
        if changes != self._seen:
            self._seen = changes
            self.changed.set()

    def has(self, version: str) -> bool:
        return version in self._here

    def missing(self, version: str) -> FmplexError | None:
        """Why a version that serves is not here; None if that is not known or it is time to try again."""
        why = self._missing.get(version)
        return why[0] if why is not None and time.monotonic() < why[1] else None

    async def follow(self, worker: str) -> None:
        """Look again whenever something changed."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            await self.catch_up(worker)

    async def catch_up(self, worker: str) -> None:
        """`sync`, as often as it takes while the broker is away."""
        while True:
            try:
                return await self.sync(worker)
            except BrokerUnavailable as e:
                log.warning("deployments: %s; trying again", e)
                await asyncio.sleep(_BACKOFF_S)

    async def sync(self, worker: str) -> None:
        """Load what serves, vote on what is offered, let go of what is no longer needed. Raises `BrokerUnavailable`."""
        async with self._lock:
            statuses = await self._registry.snapshot(self._backbone)
            for status in statuses:
                await self._sync_one(status, worker)
            self._let_go(statuses)

    async def _sync_one(self, status: VfmStatus, worker: str) -> None:
        if status.deployment is not None and status.version:
            before = self._serving.get(status.name)
            if before is None or before.generation != status.generation:
                self._scheduler.set_weight(status.name, status.spec.weight)
                if before is not None and before.version != status.version:
                    self._replace(before)
                self._serving[status.name] = status
            if not self.has(status.version) and self.missing(status.version) is None:
                refusal = await self._try(status.name, status.deployment, status.version)
                if refusal is not None:
                    log.error("vFM %s cannot be loaded here: %s", status.name, refusal)
                    self._missing[status.version] = (refusal, time.monotonic() + _RETRY_LOADING_S)
        if status.candidate is not None:
            await self._judge(status, worker)

    async def _judge(self, status: VfmStatus, worker: str) -> None:
        assert status.candidate is not None
        version, offered = status.candidate
        refusal = await self._try(status.name, offered, version)
        state = await self._registry.vote(self._backbone, status.name, version, worker, refusal)
        log.info("vFM %s version %s: %s", status.name, version, refusal or state)

    async def _try(self, name: str, offered: Deployment, version: str) -> FmplexError | None:
        """Load a version; whatever goes wrong with it is the vFM's misfortune, not the worker's."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._loader, self._read_and_load, offered, version)
        except FmplexError as e:
            return e
        except Exception as e:
            log.exception("loading %s failed", name)
            return JobFailed(f"the worker failed while loading {name!r}: {type(e).__name__}: {e}")
        self._here.add(version)
        self._missing.pop(version, None)
        return None

    def _read_and_load(self, offered: Deployment, version: str) -> None:
        package = self._read(offered)
        if package.spec.backbone != self._backbone:
            raise PackageRejected(
                f"the package is for backbone {package.spec.backbone!r}, this is {self._backbone!r}", field="backbone"
            )
        if package.digest != version:
            raise PackageRejected(
                "the package's files are not the ones that were deployed; deploy it again", field="package"
            )
        self._engine.load(package, version)

    def _read(self, offered: Deployment) -> Package:
        if offered.package is None:
            return bare(offered.spec)
        return read_package(Path(offered.package), self._roots)

    def _replace(self, old: VfmStatus) -> None:
        keep = max(_KEEP_REPLACED_S, old.spec.slo.deadline_ms / 1000)
        self._replaced[old.version] = time.monotonic() + keep

    def _let_go(self, statuses: list[VfmStatus]) -> None:
        names = {s.name for s in statuses}
        for name in [n for n in self._serving if n not in names]:
            del self._serving[name]
            self._scheduler.forget(name)
        needed = {s.version for s in statuses} | {s.candidate[0] for s in statuses if s.candidate}
        self._missing = {v: why for v, why in self._missing.items() if v in needed}
        now = time.monotonic()
        for version in list(self._replaced):
            if version in needed or self._replaced[version] < now:
                del self._replaced[version]
        for version in list(self._here):
            if version not in needed and version not in self._replaced:
                self._engine.unload(version)
                self._here.discard(version)
