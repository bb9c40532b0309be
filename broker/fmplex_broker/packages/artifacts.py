"""The artifact store: every package that was ever deployed, by digest, wherever fsspec can read and write."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import fsspec

from fmplex_broker.errors import FmplexError, InvalidInput, PackageRejected, Unavailable
from fmplex_broker.packages.archive import SUFFIX, unpack, write_archive
from fmplex_broker.packages.package import Package


class ArtifactStore:
    """Stores packages by digest. Blocking; call it off the event loop. `url`: a folder, or anything fsspec takes (`s3://…`
    needs s3fs, and so on).

    Raises `InvalidInput` for a URL that fsspec does not know, `Unavailable` when the store does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, path = fsspec.core.url_to_fs(str(Path(url).expanduser()) if "://" not in url else url)
        except (ValueError, ImportError) as e:
            raise InvalidInput(f"artifacts {url!r}: {e}", field="artifacts") from e
        self._folder = path.rstrip("/")

    @property
    def local(self) -> bool:
        """True for a folder of this machine: a copy on disk would gain nothing."""
        return "file" in self._fs.protocol

    def put(self, package: Package) -> None:
        """Store a package, whole or not at all. Again makes it young again (see `prune`), and whole if somebody has changed
        it."""
        path = self._path(package.digest)
        with self._answers():
            if not self.local:
                with tempfile.NamedTemporaryFile() as file:
                    write_archive(package, file)
                    file.flush()
                    self._fs.put_file(file.name, path)  # object stores write whole objects
                return
            self._fs.makedirs(self._folder, exist_ok=True)
            scratch = f"{self._folder}/.{uuid4().hex}"
            try:
                with self._fs.open(scratch, "wb") as file:
                    write_archive(package, file)
                self._fs.mv(scratch, path)
            except BaseException:
                with suppress(OSError):
                    self._fs.rm_file(scratch)
                raise

    def get(self, digest: str) -> bytes:
        """Read the blob of an artifact; see `open_artifact`. Raises `PackageRejected` when the store does not have it."""
        with self._answers():
            try:
                blob: bytes = self._fs.cat_file(self._path(digest))
            except FileNotFoundError:
                raise PackageRejected(
                    f"artifact {digest} is not in the artifact store {self.url}; deploy it again", field="package"
                ) from None
        return blob

    def prune(self, keep: set[str], older_than_s: float) -> list[str]:
        """Delete artifacts that nobody refers to and that are older than that: a new one may be about to be offered."""
        gone = []
        with self._answers():
            self._fs.invalidate_cache()
            for entry in self._fs.ls(self._folder, detail=True) if self._fs.exists(self._folder) else []:
                digest, dot, rest = entry["name"].rpartition("/")[2].partition(SUFFIX)
                if not dot or rest or digest in keep:
                    continue
                with suppress(FileNotFoundError):  # another gateway prunes too
                    written = entry.get("mtime") or self._fs.modified(entry["name"]).timestamp()
                    if written < time.time() - older_than_s:
                        self._fs.rm_file(entry["name"])
                        gone.append(digest)
        return gone

    def _path(self, digest: str) -> str:
        return f"{self._folder}/{digest}{SUFFIX}"

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except FmplexError:
            raise
        except Exception as e:  # every kind of store has errors of its own
            raise Unavailable(f"the artifact store {self.url} does not answer ({type(e).__name__}: {e})") from e


def open_artifact(blob: bytes | memoryview, digest: str) -> Package:
    """Open the package of an artifact; whatever was stored under the digest, only what has it is ever served.

    Raises `PackageRejected` when the blob is another one, or what `unpack` raises.
    """
    package = unpack(blob)
    if package.digest != digest:
        raise PackageRejected(f"what is stored as artifact {digest} is another one; deploy it again", field="package")
    return package
