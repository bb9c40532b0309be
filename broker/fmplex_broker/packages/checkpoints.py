"""Checkpoints of trainings, in the artifact store: `checkpoints/<job>/<name>.<part>`.

Each has a `state`, from which training goes on, and a `package` (an archive), which can be deployed. A name is used once: who has
lost a job cannot overwrite what its next worker has learnt.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Literal, TypeAlias, get_args

from fmplex_broker.errors import InvalidInput, UnknownFile
from fmplex_broker.packages.storage import Storage
from fmplex_broker.specs.tuning import is_tune_id

Part: TypeAlias = Literal["state", "package"]
PARTS: tuple[Part, ...] = get_args(Part)
_FOLDER = "checkpoints"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class CheckpointStore:
    """Stores checkpoints. Blocking; call it off the event loop. Raises `InvalidInput` for a URL that fsspec does not know and for
    what is no job or name, `StoreUnavailable` when the store does not answer, refuses or is full."""

    def __init__(self, url: str) -> None:
        self._storage = Storage(url, _FOLDER)

    def put(self, job: str, name: str, part: Part, data: bytes) -> None:
        """Write a part of a checkpoint, whole or not at all."""
        with self._storage.writing(_file(job, name, part)) as file:
            file.write(data)

    def get(self, job: str, name: str, part: Part) -> bytes:
        """Read a part of a checkpoint. Raises `UnknownFile`."""
        file = _file(job, name, part)
        try:
            with self._storage.reading(file) as found:
                return found.read()
        except FileNotFoundError:
            raise UnknownFile(
                f"there is no checkpoint {name!r} of tuning job {job} in the store", field="checkpoint"
            ) from None

    def delete(self, job: str, name: str) -> None:
        """Delete all parts of a checkpoint; nothing happens if there is none."""
        for part in PARTS:
            with suppress(FileNotFoundError):
                self._storage.delete(_file(job, name, part))

    def jobs(self) -> list[str]:
        """Return the ids of tuning jobs that have checkpoints here, sorted."""
        return [name for name in self._storage.folders() if is_tune_id(name)]

    def forget(self, job: str) -> None:
        """Delete all checkpoints of a tuning job; nothing happens if there are none."""
        if is_tune_id(job):
            with suppress(FileNotFoundError):
                self._storage.delete(job)


def _file(job: str, name: str, part: Part) -> str:
    if not is_tune_id(job) or not _NAME.fullmatch(name):
        raise InvalidInput(f"{name[:64]!r} of {job[:64]!r} is no checkpoint", field="checkpoint")
    return f"{job}/{name}.{part}"
