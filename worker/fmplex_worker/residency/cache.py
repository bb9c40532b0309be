"""Artifacts on this machine's disk, shared by its workers: a folder of files by digest, bounded in bytes."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from fmplex_broker.packages.archive import SUFFIX

_STALE_S = 3600.0
log = logging.getLogger(__name__)


class DiskCache:
    """A cache and nothing more, of at most `budget` bytes: a disk that is full or forbids writing only makes it useless, never
    an error.

    A file's time of modification says when it was last used, so that workers which share the folder agree on the order.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder.expanduser()
        self._budget = budget
        for scratch in self._folder.glob(".*"):  # of workers that were killed while they wrote
            with suppress(OSError):
                if scratch.stat().st_mtime < time.time() - _STALE_S:
                    scratch.unlink()
        self.nbytes = sum(size for _, size, _ in self._files())

    def get(self, digest: str) -> bytes | None:
        """Return an artifact and note its use; None if it is not here."""
        path = self._folder / f"{digest}{SUFFIX}"
        try:
            blob = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return blob

    def put(self, digest: str, blob: bytes) -> None:
        """Keep an artifact, if the budget and the disk allow it."""
        if len(blob) > self._budget:
            return
        scratch = self._folder / f".{uuid4().hex}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(blob)
            scratch.rename(self._folder / f"{digest}{SUFFIX}")
        except OSError as e:
            log.warning("the artifact cache %s cannot be written: %s", self._folder, e)
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
            return
        self._shrink()

    def drop(self, digest: str) -> None:
        """Remove an artifact."""
        with suppress(OSError):
            (self._folder / f"{digest}{SUFFIX}").unlink(missing_ok=True)
        self._shrink()

    def _shrink(self) -> None:
        files = sorted(self._files())
        self.nbytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self.nbytes <= self._budget:
                return
            with suppress(OSError):
                path.unlink(missing_ok=True)
            self.nbytes -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):  # another worker may just have removed it
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return found
