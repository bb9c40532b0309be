"""Checkpoints of trainings, in the artifact store: `checkpoints/<job>/<name>.<part>`.

Each has a `state`, from which training goes on, and a `package` (an archive), which can be deployed. A name is used once: who has
lost a job cannot overwrite what its next worker has learnt.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from fmplex_broker.packages.storage import Storage

Part: TypeAlias = Literal["state", "package"]
PARTS: tuple[Part, ...] = ("state", "package")
_FOLDER = "checkpoints"


class CheckpointStore:
    """Stores checkpoints. Blocking; call it off the event loop. Raises `InvalidInput` for a URL that fsspec does not know,
    `StoreUnavailable` when the store does not answer, refuses or is full."""

    def __init__(self, url: str) -> None:
        self._storage = Storage(url, _FOLDER)

    def put(self, job: str, name: str, part: Part, data: bytes) -> None:
        """Write a part of a checkpoint, whole or not at all."""
        raise NotImplementedError

    def get(self, job: str, name: str, part: Part) -> bytes:
        """Read a part of a checkpoint. Raises `UnknownFile`."""
        raise NotImplementedError

    def delete(self, job: str, name: str) -> None:
        """Delete all parts of a checkpoint; nothing happens if there is none."""
        raise NotImplementedError

    def prune(self, older_than_s: float) -> list[str]:
        """Delete the checkpoints of tuning jobs that were made so long ago; return their ids."""
        raise NotImplementedError
