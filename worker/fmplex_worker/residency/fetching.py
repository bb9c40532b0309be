"""Where a version comes from when it is not on the device: host memory, this machine's disk, the artifact store."""

from __future__ import annotations

import threading
from typing import Literal

from fmplex_broker.artifacts import ArtifactStore, open_artifact
from fmplex_broker.errors import FmplexError
from fmplex_broker.packages import Package
from fmplex_broker.specs import ResidencySpec
from fmplex_worker.residency.cache import DiskCache
from fmplex_worker.residency.lru import LruBytes

OVERHEAD = 8192  # bytes that any version takes beside its files or tensors
Source = Literal["host", "disk", "store"]


class Fetcher:
    """Blocking; any thread. Every package that leaves it has been checked and has the digest that was asked for."""

    def __init__(self, store: ArtifactStore, spec: ResidencySpec) -> None:
        self._store = store
        # A store that is a folder of this machine needs no copy on its disk.
        self._disk = None if store.local or not spec.disk_bytes else DiskCache(spec.cache, spec.disk_bytes)
        self._host = LruBytes(spec.host_bytes)
        self._packages: dict[str, Package] = {}
        self._lock = threading.Lock()

    def fetch(self, digest: str) -> tuple[Package, Source]:
        """Raises `PackageRejected` (not in the store, or not what it was) or `Unavailable` (the store does not answer)."""
        with self._lock:
            package = self._packages.get(digest)
            if package is not None:
                self._host.touch(digest)
                return package, "host"
        package, source = self._from_disk(digest) or (None, "store")
        if package is None:
            blob = self._store.get(digest)
            package = open_artifact(blob, digest)
            if self._disk is not None:
                self._disk.put(digest, blob)
        self._keep(package)
        return package, source

    def _from_disk(self, digest: str) -> tuple[Package, Source] | None:
        blob = self._disk.get(digest) if self._disk is not None else None
        if blob is None:
            return None
        try:
            return open_artifact(blob, digest), "disk"
        except FmplexError:  # a torn or tampered file: the store has the right one
            assert self._disk is not None
            self._disk.drop(digest)
            return None

    def _keep(self, package: Package) -> None:
        size = package.nbytes + OVERHEAD
        with self._lock:
            if size > self._host.budget:
                return
            for gone in self._host.victims(size) if package.digest not in self._packages else ():
                self._host.remove(gone)
                del self._packages[gone]
            self._host.put(package.digest, size)
            self._packages[package.digest] = package

    @property
    def host_bytes(self) -> int:
        return self._host.nbytes

    @property
    def disk_bytes(self) -> int:
        return self._disk.nbytes if self._disk is not None else 0
