"""What all that lies in the artifact store has in common: a URL, names, writing whole or not at all, and errors."""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast
from uuid import uuid4

import fsspec

from fmplex_broker.errors import FmplexError, InvalidInput, StoreUnavailable

# Bytes that are read or sent at a time. Object stores have a default of 50 MB, which every open file would hold in memory.
BLOCK_BYTES = 8 << 20
_BUFFER = 1 << 17
_ABANDONED_S = 86_400.0  # a scratch file to which nobody has written for so long
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Storage:
    """A folder in the artifact store. Blocking; call it off the event loop. `url`: a folder, or anything fsspec takes (`s3://…`
    needs s3fs, and so on); `within`: a folder below it.

    Raises `InvalidInput` for a URL that fsspec does not know, `StoreUnavailable` when the store does not answer, refuses or is
    full.
    """

    def __init__(self, url: str, within: str = "") -> None:
        self.url = url
        try:
            fs, path = fsspec.core.url_to_fs(str(Path(url).expanduser()) if "://" not in url else url)
        except (ValueError, ImportError) as e:
            raise InvalidInput(f"artifacts {url!r}: {e}", field="artifacts") from e
        self.fs: Any = fs  # fsspec is not typed
        self.folder = f"{path.rstrip('/')}/{within}".rstrip("/")

    @property
    def local(self) -> bool:
        """True for a folder of this machine."""
        return "file" in self.fs.protocol

    def path(self, name: str) -> str:
        """Return where fsspec finds the file of a name."""
        return f"{self.folder}/{name}"

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Write a file, under a scratch name that becomes `name` at a clean end. After any other nothing is left: whoever reads
        `name` sees a whole file or none. Its steps may run on several threads, one after the other."""
        path = self.path(name)
        folder = path.rpartition("/")[0]
        scratch = f"{folder}/.{uuid4().hex}"
        with self.answers():
            self.fs.makedirs(folder, exist_ok=True)
            file = self.fs.open(scratch, "wb", block_size=BLOCK_BYTES)
        try:
            with _Guarded(file, self) as guarded:
                yield cast(IO[bytes], guarded)
            with self.answers():
                self.fs.mv(scratch, path)
        except BaseException:
            with suppress(Exception):  # of whatever kind: the store may be away
                self.fs.rm_file(scratch)
            raise

    def reading(self, name: str) -> IO[bytes]:
        """Open a file for reading, block by block; it can be sought in. Raises `FileNotFoundError`."""
        with self.answers(FileNotFoundError):
            file = self.fs.open(self.path(name), "rb", block_size=BLOCK_BYTES)
        return io.BufferedReader(_Guarded(file, self), _BUFFER)

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files in a folder, sorted; none if there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        return [prefix + name for name in self._found(folder) if not name.startswith(".")]

    def folders(self) -> list[str]:
        """Return the names of the folders directly in this one, sorted."""
        return self._found("", "directory")

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it. Raises `FileNotFoundError` if there is none."""
        with self.answers(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)

    def age_s(self, name: str) -> float:
        """Return how long ago a file was written. Raises `FileNotFoundError`."""
        with self.answers(FileNotFoundError):
            return time.time() - float(self.fs.modified(self.path(name)).timestamp())

    def sweep(self) -> None:
        """Delete what writers that were killed have left half written, directly in this folder."""
        for name in self._found(""):
            with suppress(FileNotFoundError):  # somebody else sweeps too
                if name.startswith(".") and self.age_s(name) > _ABANDONED_S:
                    self.delete(name)

    def _found(self, folder: str, kind: str = "file") -> list[str]:
        """List the last parts of the names of the files (or of what `kind`) in a folder, scratch files too, sorted."""
        path = self.path(folder).rstrip("/")
        with self.answers(), suppress(FileNotFoundError):
            self.fs.invalidate_cache(path)
            entries = self.fs.ls(path, detail=True)
            return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == kind)
        return []

    @contextmanager
    def answers(self, *unless: type[Exception]) -> Iterator[None]:
        """Turn what the store raises into `StoreUnavailable`, unless it is one of these errors."""
        try:
            yield
        except Exception as e:  # every kind of store has errors of its own
            if isinstance(e, (FmplexError, *unless)):
                raise
            full = isinstance(e, OSError) and e.errno in _NO_ROOM
            what = "has no room left" if full else "does not answer"
            raise StoreUnavailable(f"the artifact store {self.url} {what} ({type(e).__name__}: {e})") from e


class _Guarded(io.RawIOBase):
    """A file of the store whose failures are `StoreUnavailable`; those of whoever uses it stay what they are."""

    def __init__(self, file: Any, storage: Storage) -> None:
        self._file = file
        self._storage = storage

    def readable(self) -> bool:
        """Tell whether it was opened for reading."""
        return bool(self._file.readable())

    def writable(self) -> bool:
        """Tell whether it was opened for writing."""
        return bool(self._file.writable())

    def seekable(self) -> bool:
        """Tell whether it was opened for reading."""
        return self.readable()

    def readinto(self, buffer: Any) -> int:
        """Read as much as there is room for; return how many bytes, 0 at the end."""
        with self._storage.answers():
            part = self._file.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def write(self, part: Any) -> int:
        """Write all of it; return how many bytes."""
        with self._storage.answers():
            self._file.write(part)
        return len(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; return it."""
        with self._storage.answers():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the place."""
        return int(self._file.tell())

    def close(self) -> None:
        """Close the file; what was written is in the store then."""
        if not self.closed:
            super().close()
            with self._storage.answers():
                self._file.close()
