"""What tuning jobs read from the artifact store and leave there. Blocking; call it off the event loop."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from fmplex_broker.errors import UnknownFile
from fmplex_broker.packages.archive import pack, unpack
from fmplex_broker.packages.artifacts import ArtifactStore, open_artifact
from fmplex_broker.packages.checkpoints import CheckpointStore
from fmplex_broker.packages.files import FileStore
from fmplex_broker.packages.package import MANIFEST, Package, make_package
from fmplex_broker.specs.files import FileRecord
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.tune_records import Checkpoint
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.specs.vfm import VfmSpec

_BASE = "base"  # no checkpoint has this name
_TRAINED = ("max_tokens", "system", "chat_template")  # of a generating head, that the trainer knows


class TuneShelf:
    """The parts of an artifact store that tuning jobs need. Raises what these raise: `StoreUnavailable`, `UnknownFile`,
    `PackageRejected`."""

    def __init__(self, store: ArtifactStore) -> None:
        self.artifacts = store
        self._files = FileStore(store.url)
        self._checkpoints = CheckpointStore(store.url)

    def fetch(self, file: FileRecord, folder: Path) -> Path:
        """Copy a file into a folder of this machine, under its id and the ending that says its form; return where it is."""
        place = folder / f"{file.id}{Path(file.filename).suffix.lower()}"
        with self._files.open(file.id) as source, place.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        return place

    def version(self, version: str) -> Package:
        """Read the package of a version that serves or has served."""
        artifact = artifact_of(version)
        return open_artifact(self.artifacts.get(artifact), artifact)

    def state(self, job: str, name: str) -> bytes:
        """Read the state from which a training goes on."""
        return self._checkpoints.get(job, name, "state")

    def package(self, job: str, name: str) -> Package:
        """Read what a checkpoint would serve."""
        return unpack(self._checkpoints.get(job, name, "package"))

    def base(self, job: str) -> Package:
        """Read what a job goes on from, as `keep_base` has kept it. Raises `UnknownFile`."""
        return self.package(job, _BASE)

    def keep_base(self, job: str, package: Package) -> None:
        """Keep what a job goes on from beside its checkpoints, as long as these."""
        self._checkpoints.put(job, _BASE, "package", pack(package))

    def keep(self, job: str, name: str, state: bytes, package: Package) -> int:
        """Write a checkpoint; return its bytes."""
        parts: Mapping[Literal["state", "package"], bytes] = {"state": state, "package": pack(package)}
        for part, data in parts.items():
            self._checkpoints.put(job, name, part, data)
        return sum(map(len, parts.values()))

    def drop(self, job: str, checkpoints: tuple[Checkpoint, ...]) -> None:
        """Delete checkpoints that are not kept any more."""
        for one in checkpoints:
            self._checkpoints.delete(job, one.name)

    def write(self, file: str, data: bytes) -> None:
        """Write a file under an id."""
        with self._files.writing(file) as out:
            out.write(data)


def package_of(files: Mapping[str, bytes], name: str, base: Package | None) -> Package:
    """Make the package of what a training has learnt, as the vFM `name`. What a trainer does not know of a generating head (when
    it stops, how it samples) stays as in `base`, which it went on from."""
    spec = parse(VfmSpec, tomllib.loads(files[MANIFEST].decode()))
    head, before = spec.head, None if base is None else base.spec.head
    if isinstance(head, Generation) and isinstance(before, Generation):
        head = before.model_copy(update={part: getattr(head, part) for part in _TRAINED})
    return make_package(spec.model_copy(update={"name": name, "head": head}), files)


def of_step(checkpoints: tuple[Checkpoint, ...], step: int) -> Checkpoint:
    """Return the checkpoint of a step. Raises `UnknownFile`."""
    for one in checkpoints:
        if one.step == step:
            return one
    raise UnknownFile(
        f"the checkpoint of step {step} is not kept any more: the best and the last two are; go on from another",
        field="model",
    )
