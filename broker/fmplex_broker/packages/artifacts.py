"""The artifact store: every package that was ever deployed, by digest, wherever fsspec can read and write."""

from __future__ import annotations

from contextlib import suppress

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.archive import SUFFIX, unpack, write_archive
from fmplex_broker.packages.package import Package
from fmplex_broker.packages.storage import Storage


class ArtifactStore:
    """Stores packages by digest. Blocking; call it off the event loop. `url`: a folder, or anything fsspec takes (`s3://…`
    needs s3fs, and so on).

    Raises `InvalidInput` for a URL that fsspec does not know, `StoreUnavailable` when the store does not answer, refuses or is
    full.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._storage = Storage(url)

    @property
    def local(self) -> bool:
        """True for a folder of this machine: a copy on disk would gain nothing."""
        return self._storage.local

    def put(self, package: Package) -> None:
        """Store a package, whole or not at all. Again makes it young again (see `prune`), and whole if somebody has changed
        it."""
        with self._storage.writing(_name(package.digest)) as file:
            write_archive(package, file)

    def get(self, digest: str) -> bytes:
        """Read the blob of an artifact; see `open_artifact`. Raises `PackageRejected` when the store does not have it."""
        with self._storage.answers():
            try:
                blob: bytes = self._storage.fs.cat_file(self._storage.path(_name(digest)))
            except FileNotFoundError:
                raise PackageRejected(
                    f"artifact {digest} is not in the artifact store {self.url}; deploy it again", field="package"
                ) from None
        return blob

    def prune(self, keep: set[str], older_than_s: float) -> list[str]:
        """Delete artifacts that nobody refers to and that are older than that: a new one may be about to be offered; and what
        puts that were killed have left."""
        self._storage.sweep()
        gone = []
        for name in self._storage.names():
            digest, dot, rest = name.partition(SUFFIX)
            if not dot or rest or digest in keep:
                continue
            with suppress(FileNotFoundError):  # another gateway prunes too
                if self._storage.age_s(name) > older_than_s:
                    self._storage.delete(name)
                    gone.append(digest)
        return gone


def _name(digest: str) -> str:
    return digest + SUFFIX


def open_artifact(blob: bytes | memoryview, digest: str) -> Package:
    """Open the package of an artifact; whatever was stored under the digest, only what has it is ever served.

    Raises `PackageRejected` when the blob is another one, or what `unpack` raises.
    """
    package = unpack(blob)
    if package.digest != digest:
        raise PackageRejected(f"what is stored as artifact {digest} is another one; deploy it again", field="package")
    return package
