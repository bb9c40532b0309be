"""The bytes of files: what people upload for batches, what batches answer, and the parts of that, in the artifact store."""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager, suppress
from typing import IO

from fmplex_broker.errors import InvalidInput, UnknownFile
from fmplex_broker.packages.storage import Storage

_FOLDER = "files"
_PART = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")
_ABANDONED_S = 86_400.0  # a scratch file to which nobody has written for so long


class FileStore:
    """Stores files by name, below `files/` of the artifact store. Blocking; call it off the event loop. Names have parts between
    slashes, none of which begins with a dot.

    Raises `InvalidInput` for a URL that fsspec does not know, `StoreUnavailable` when the store does not answer, refuses or is
    full.
    """

    def __init__(self, url: str) -> None:
        self._storage = Storage(url, _FOLDER)

    def writing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Write a file: it is there, whole, after a clean end of the context; after any other nothing is. A file of this name is
        replaced. The steps may run on several threads, one after the other."""
        return self._storage.writing(_checked(name))

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading, block by block; it can be sought in. Raises `UnknownFile`; reading raises as all else does."""
        try:
            return self._storage.reading(_checked(name))
        except FileNotFoundError:
            raise UnknownFile.of(name) from None

    def names(self, folder: str = "") -> list[str]:
        """Return the names, as `open` takes them, of the files in a folder, sorted; none if there is no such folder."""
        prefix = f"{_checked(folder)}/" if folder else ""
        return sorted(prefix + name for name in self._found(folder) if not name.startswith("."))

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing happens if there is none."""
        with self._storage.answers(), suppress(FileNotFoundError):
            self._storage.fs.rm(self._storage.path(_checked(name)), recursive=True)

    def sweep(self) -> None:
        """Delete what writers that were killed have left half written."""
        fs = self._storage.fs
        with self._storage.answers():
            for name in self._found(""):
                path = self._storage.path(name)
                with suppress(FileNotFoundError):  # another gateway sweeps too
                    if name.startswith(".") and fs.modified(path).timestamp() < time.time() - _ABANDONED_S:
                        fs.rm_file(path)

    def _found(self, folder: str) -> list[str]:
        """List the last parts of the names of the files in a folder, scratch files too."""
        path = self._storage.path(folder).rstrip("/")
        with self._storage.answers(), suppress(FileNotFoundError):
            self._storage.fs.invalidate_cache(path)
            entries = self._storage.fs.ls(path, detail=True)
            return [entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file"]
        return []


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name[:64]!r} is no name of a file")
    return name
