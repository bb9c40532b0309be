"""The bytes of files: what people upload for batches, what batches answer, and the parts of that, in the artifact store."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, suppress
from typing import IO

from fmplex_broker.errors import InvalidInput, UnknownFile
from fmplex_broker.packages.storage import Storage

_FOLDER = "files"
_PART = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")


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
        return self._storage.names(_checked(folder) if folder else "")

    def folders(self) -> list[str]:
        """Return the names of the folders that there are, as `names` and `delete` take them, sorted."""
        return self._storage.folders()

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing happens if there is none."""
        with suppress(FileNotFoundError):
            self._storage.delete(_checked(name))

    def age_s(self, name: str) -> float:
        """Return how long ago a file was written. Raises `UnknownFile`."""
        try:
            return self._storage.age_s(_checked(name))
        except FileNotFoundError:
            raise UnknownFile.of(name) from None

    def sweep(self) -> None:
        """Delete what uploads have left that ended with their gateway."""
        self._storage.sweep()


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name[:64]!r} is no name of a file")
    return name
