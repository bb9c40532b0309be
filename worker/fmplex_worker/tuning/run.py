"""The one trainer: a course of units that can be cut and gone on with, whoever runs them, to the same result."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

from fmplex_broker.errors import JobFailed
from fmplex_broker.packages.package import MANIFEST
from fmplex_broker.packages.writing import manifest
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_worker.packed.memory import out_of_memory
from fmplex_worker.training import HeldOut, MemoryNeed, RunProgress, TuneOrder, Unit
from fmplex_worker.tuning.room import Room
from fmplex_worker.tuning.state import RunSnapshot, State, read_state


class Course(Protocol):
    """What a run goes through from its first unit to its score."""

    @property
    def vfm(self) -> VfmSpec:
        """The vFM that comes of it."""

    @property
    def state(self) -> State | None:
        """Its state as of the last point where it may be cut, always the same object for the same point; None: the beginning."""

    def restore(self, state: State) -> None:
        """Go on from a state; before its first unit."""

    def units(self) -> Iterator[Unit]:
        """Yield all units; each has been run before the next is asked for."""

    @property
    def progress(self) -> RunProgress:
        """How far it has come; `ended` is empty or why it will end early, and `held_out` is not there yet."""

    @property
    def room(self) -> Room:
        """The room that it has."""

    @property
    def held_out(self) -> HeldOut | None:
        """The scores, once it has ended."""

    def files(self, state: State | None = None) -> dict[str, bytes]:
        """Return the files of the package but for vfm.toml, as of the best state, not while a unit runs; or as of `state`, one of
        its own, on any thread."""


class Run:
    """`fmplex_worker.training.Training` of a course. `order`: the name of what was ordered, which its snapshots carry; `state`: a
    snapshot to go on from, dumped.

    Raises `InvalidInput`: it is of another training.
    """

    def __init__(self, course: Course, order: str, state: bytes | None) -> None:
        self._course, self._order = course, order
        self._ended = False
        self._saved: State | None = None
        if state is not None and (read := read_state(state, order)).values:
            course.restore(read)
            self._saved = course.state
        self._units = course.units()

    def next(self) -> Unit | None:
        """Return the next unit; see `Training.next`."""
        with enough_memory():
            unit = next(self._units, None)
        self._ended = unit is None
        return None if unit is None else unit._replace(run=partial(_run, unit))

    @property
    def progress(self) -> RunProgress:
        """How far it has come; see `Training.progress`."""
        progress = self._course.progress
        if not self._ended:
            return replace(progress, ended="")
        return replace(progress, ended=progress.ended or "finished", held_out=self._course.held_out)

    @property
    def needs(self) -> MemoryNeed:
        """Bytes of the device that it takes; see `Training.needs`."""
        return self._course.room.needs

    @property
    def holds(self) -> int:
        """Bytes that it takes now at most; see `Training.holds`."""
        return self._course.room.holds

    def limit(self, nbytes: int) -> None:
        """Take no more than so many bytes; see `Training.limit`."""
        self._course.room.limit(nbytes)

    @property
    def checkpoint_due(self) -> bool:
        """Whether there is something new to save; see `Training.checkpoint_due`."""
        return self._course.state is not self._saved

    def snapshot(self) -> RunSnapshot:
        """Return its state as of the last point where it may be cut; see `Training.snapshot`."""
        self._saved = self._course.state
        return RunSnapshot(self._order, self._saved or State(0), self._package)

    def package(self) -> dict[str, bytes]:
        """Return the files of the package; see `Training.package`."""
        return self._package()

    def _package(self, state: State | None = None) -> dict[str, bytes]:
        return {MANIFEST: manifest(self._course.vfm).encode(), **self._course.files(state)}


def _run(unit: Unit) -> None:
    with enough_memory():
        unit.run()


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise `JobFailed` where the device's memory does not suffice, and nothing is there that could be made smaller."""
    try:
        yield
    except Exception as e:
        if not out_of_memory(e):
            raise
        raise JobFailed(
            "this training does not fit into the device's memory beside what it serves; give a lower rank, fewer targets or "
            "shorter texts"
        ) from e


def name_of(order: TuneOrder) -> str:
    """Name what is ordered: the same for the same settings, examples and start, wherever those lie."""
    said = order.spec.model_dump_json(exclude={"name", "backbone", "data", "out", "model", "threads"})
    parts = [said.encode(), order.spec.data.read_bytes()]
    parts.append(b"" if order.validation is None else order.validation.read_bytes())
    parts.append(b"" if order.start is None else order.start.digest.encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
