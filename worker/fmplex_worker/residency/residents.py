"""The versions on the device: loaded on demand off the step path, evicted least recently used, pinned while in use."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor

from fmplex_broker.errors import FmplexError, JobFailed, PackageRejected
from fmplex_broker.memory import Trimmer
from fmplex_broker.wire.stats import ResidencyStats, bucket_of
from fmplex_worker.protocol import Engine, Fitted
from fmplex_worker.residency.fetching import OVERHEAD, Fetcher, Source
from fmplex_worker.residency.lru import LruBytes

log = logging.getLogger(__name__)
_BLAME_S = 1.0  # how long a failure to load is remembered


class Residents:
    """Versions on the device; used on the event loop only. A version is keyed by its digest; `names` says for which vFMs it was
    loaded.

    When what is pinned leaves no room, the pinned version that was used longest ago is *leaving*: new jobs of it wait as if it
    were not here, so that its pins run out and it can go. Nobody who waits for room waits for ever.
    """

    def __init__(
        self, engine: Engine, fetcher: Fetcher, budget: int, fetching: Executor, loading: Executor | None
    ) -> None:
        """Versions are brought into host memory on `fetching` and copied to the device on `loading`; None: on the device they are
        where they were, and no thread is needed for it."""
        self._engine = engine
        self._fetcher = fetcher
        self._fetching = fetching
        self._loading = loading
        self._lru = LruBytes(budget)
        self._leaving: set[str] = set()
        self._obsolete: set[str] = set()  # no vFM serves it any more: goes with its last job
        self._names: dict[str, str] = {}  # vFM -> the version it was last seen with here
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._waiting: Counter[str] = Counter()  # callers of `load` that wait for a version
        self._failed: dict[str, tuple[FmplexError, float]] = {}
        self._placing = asyncio.Lock()
        self._unpinned = asyncio.Event()
        self._trimmer = Trimmer()
        self._dropped = 0  # bytes that host memory had let go when last asked
        self.stats = ResidencyStats(budget_bytes=budget)

    # --- asking ---

    def has(self, digest: str) -> bool:
        """Tell whether a version is here, and to stay."""
        return digest in self._lru and digest not in self._leaving

    @property
    def crowded(self) -> bool:
        """True when half of the budget is pinned: whoever comes now would only wait for those to end."""
        return 2 * self._lru.pinned_bytes > self._lru.budget

    def here(self) -> set[str]:
        """Return the vFMs whose version is here."""
        return {name for name, digest in self._names.items() if self.has(digest)}

    def known(self) -> Mapping[str, str]:
        """Return vFM → version, of all that were seen here and not forgotten."""
        return self._names

    # --- using ---

    def count(self, hits: int, misses: int) -> None:
        """Count jobs whose version was here, and jobs that had to wait for theirs."""
        self.stats.hits += hits
        self.stats.misses += misses

    def pin(self, digest: str) -> None:
        """Pin a version whose job begins: it stays until `unpin`. It must be here."""
        self._lru.pin(digest)

    def unpin(self, digest: str) -> None:
        """Undo one `pin`; a version that no vFM serves any more goes with its last job."""
        if digest in self._lru and self._lru.unpin(digest):
            self._unpinned.set()
            if digest in self._obsolete:
                self._evict(digest)

    def unpin_all(self) -> None:
        """Undo every `pin`, at the start of a new lease: what the last one held is not ours any more."""
        self._lru.unpin_all()
        for digest in list(self._obsolete):
            self._evict(digest)
        self._unpinned.set()

    async def load(self, digest: str, vfm: str) -> None:
        """Bring a version here and pin it once for the caller. Raises `PackageRejected`, `Unavailable` or `JobFailed`."""
        if self.has(digest):
            self._lru.pin(digest)
        else:
            await self._wait_for(digest)
        self._names.setdefault(vfm, digest)

    async def _wait_for(self, digest: str) -> None:
        """Wait until a version is here and `_pin_for_all` has pinned it."""
        failed = self._failed.get(digest)
        if failed is not None and time.monotonic() < failed[1]:
            raise failed[0]
        task = self._loads.get(digest)
        if task is None:
            task = self._loads[digest] = asyncio.create_task(self._load(digest))
            task.add_done_callback(lambda t: self._ended(digest, t))
        self._waiting[digest] += 1
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                self._waiting[digest] -= 1
            elif not task.cancelled() and task.exception() is None:
                self.unpin(digest)  # it came just before the caller gave up
            raise
        except BaseException:  # the panic of a library in Rust is no Exception
            raise self._failed[digest][0] from None  # as `_ended` has noted it

    # --- following the fleet ---

    def serves(self, vfm: str, digest: str) -> None:
        """Note what a vFM serves now; a version that it served before is let go unless another vFM has it too."""
        known = vfm in self._names
        if known and self._names[vfm] != digest:
            self.forget(vfm)
        if (
            known or digest in self._lru
        ):  # also if it is not here yet: a late job of the old version must not pass for it
            self._names[vfm] = digest
            self._obsolete.discard(digest)

    def forget(self, vfm: str) -> None:
        """Forget a vFM that is gone, or serves something else: its bytes come back at once, or when its last job has ended."""
        digest = self._names.pop(vfm, None)
        if digest is None or digest not in self._lru or digest in self._names.values():
            return
        if self._lru.pinned(digest):
            self._obsolete.add(digest)
        else:
            self._evict(digest)

    async def trim(self) -> None:
        """Give freed memory back to the system, now and then."""
        dropped, self._dropped = self._fetcher.dropped_bytes - self._dropped, self._fetcher.dropped_bytes
        if dropped:
            self._trimmer.freed(dropped)
        await asyncio.to_thread(self._trimmer.trim)

    def snapshot(self) -> ResidencyStats:
        """Return the statistics as of now."""
        s = self.stats
        s.versions, s.device_bytes = len(self._lru), self._lru.nbytes
        s.host_bytes, s.disk_bytes = self._fetcher.host_bytes, self._fetcher.disk_bytes
        return s

    async def close(self) -> None:
        """Cancel the loads that run, and wait for them."""
        for task in self._loads.values():
            task.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)

    # --- inner ---

    async def _load(self, digest: str) -> None:
        begun = time.monotonic()
        fitted, source = await self._fetch(digest)
        async with self._placing:  # first come, first served
            if digest in self._lru:  # it was leaving, and whoever needed its room has been served
                self._leaving.discard(digest)
                self._pin_for_all(digest)
                return
            need = fitted.nbytes + OVERHEAD
            await self._make_room(need)
            if self._loading is None:
                self._engine.load(fitted)
            else:
                await asyncio.get_running_loop().run_in_executor(self._loading, self._engine.load, fitted)
            self._lru.put(digest, need)
            self._pin_for_all(digest)
        self._count(source, time.monotonic() - begun)

    async def _fetch(self, digest: str) -> tuple[Fitted, Source]:
        if (kept := self._fetcher.kept(digest)) is not None:
            return kept, "host"
        return await asyncio.get_running_loop().run_in_executor(self._fetching, self._fetcher.fetch, digest)

    def _pin_for_all(self, digest: str) -> None:
        """Pin a version once for each caller that waits, before the next in line may want its room: else two versions that want
        the same place could push each other out for ever, each before it was used."""
        self._lru.pin(digest, self._waiting.pop(digest, 0))

    async def _make_room(self, need: int) -> None:
        if need > self._lru.budget:
            raise PackageRejected(
                f"it takes {need} bytes on the device, and worker.residency.device_bytes is {self._lru.budget}; make the "
                "adapter smaller or the budget larger",
                field="package",
            )
        while True:
            for victim in self._lru.victims(need):
                self._evict(victim)
            if self._lru.nbytes + need <= self._lru.budget:
                self._leaving.clear()  # the others may stay
                return
            leaving = next((key for key in self._lru if key not in self._leaving), None)
            if leaving is not None:
                self._leaving.add(leaving)
            self._unpinned.clear()
            await self._unpinned.wait()

    def _evict(self, digest: str) -> None:
        before = self._lru.nbytes
        self._lru.remove(digest)
        self._leaving.discard(digest)
        self._obsolete.discard(digest)
        self._engine.unload(digest)
        self._trimmer.freed(before - self._lru.nbytes)
        self.stats.evictions += 1

    def _count(self, source: Source, seconds: float) -> None:
        self.stats.loads[source] = self.stats.loads.get(source, 0) + 1
        self.stats.load_s += seconds
        self.stats.load_ms[bucket_of(seconds * 1000)] += 1

    def _ended(self, digest: str, task: asyncio.Task[None]) -> None:
        del self._loads[digest]
        self._waiting.pop(digest, None)
        self._failed = {d: f for d, f in self._failed.items() if time.monotonic() < f[1]}
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, FmplexError):
            log.error("loading version %s failed", digest, exc_info=error)
            error = JobFailed(f"the worker failed while loading version {digest}: {type(error).__name__}: {error}")
        self._failed[digest] = (error, time.monotonic() + _BLAME_S)
