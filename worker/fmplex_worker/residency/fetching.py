"""Fetching versions that are not on the device: from host memory, this machine's disk, the artifact store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.artifacts import ArtifactStore, open_artifact
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.fleet import ResidencySpec
from fmplex_worker.protocol import Fitted
from fmplex_worker.residency.cache import DiskCache
from fmplex_worker.residency.lru import LruBytes

OVERHEAD = 8192  # bytes that any version takes beside its tensors
Source = Literal["host", "disk", "store"]


class Fetcher:
    """Fetcher of versions; thread-safe. Every version that leaves it has been checked, has the digest that was asked for and is
    fitted to the backbone: host memory keeps it so, and what comes from there is on the device with little work."""

    def __init__(self, store: ArtifactStore, spec: ResidencySpec, fit: Callable[[Package], Fitted]) -> None:
        self._store = store
        self._fit = fit
        # A store that is a folder of this machine needs no copy on its disk.
        self._disk = None if store.local or not spec.disk_bytes else DiskCache(spec.cache, spec.disk_bytes)
        self._host = LruBytes(spec.host_bytes)
        self._kept: dict[str, Fitted] = {}
        self.dropped_bytes = 0  # from host memory, so far
        self._lock = threading.Lock()
        # Many may wait for a far store; one at a time checks and fits. The interpreter goes in turn to every thread that wants
        # it, and each in that line would keep the running pass waiting once more.
        self._working = threading.Lock()

    def kept(self, digest: str) -> Fitted | None:
        """Return a version from host memory, at once; None if it is not there."""
        with self._lock:
            if digest in self._kept:
                self._host.touch(digest)
            return self._kept.get(digest)

    def fetch(self, digest: str) -> tuple[Fitted, Source]:
        """Fetch a version from disk or store, check it and fit it; blocks. Raises `PackageRejected` (not in the store, not what
        it was, not for this backbone) or `Unavailable` (the store does not answer)."""
        package, source = self._from_disk(digest) or self._from_store(digest)
        with self._working:
            fitted = self._fit(package)
        self._keep(fitted)
        return fitted, source

    def _from_store(self, digest: str) -> tuple[Package, Source]:
        blob = self._store.get(digest)
        package = self._open(blob, digest)
        if self._disk is not None:
            self._disk.put(digest, blob)
        return package, "store"

    def _from_disk(self, digest: str) -> tuple[Package, Source] | None:
        blob = self._disk.get(digest) if self._disk is not None else None
        if blob is None:
            return None
        try:
            return self._open(blob, digest), "disk"
        except FmplexError:  # a torn or tampered file: the store has the right one
            assert self._disk is not None
            self._disk.drop(digest)
            return None

    def _open(self, blob: bytes, digest: str) -> Package:
        with self._working:
            return open_artifact(blob, digest)

    def _keep(self, fitted: Fitted) -> None:
        size = fitted.nbytes + OVERHEAD
        if size > self._host.budget:
            return
        with self._lock:
            victims = self._host.victims(size) if fitted.digest not in self._kept else []
            for victim in victims:
                self._host.remove(victim)
            gone = [self._kept.pop(victim) for victim in victims]  # their memory goes after the lock
            self._host.put(fitted.digest, size)
            self._kept[fitted.digest] = fitted
        self.dropped_bytes += sum(version.nbytes for version in gone)

    @property
    def host_bytes(self) -> int:
        """Bytes of versions kept in host memory."""
        return self._host.nbytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of artifacts on this machine's disk; 0 without a cache there."""
        return self._disk.nbytes if self._disk is not None else 0
