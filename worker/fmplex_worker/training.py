"""The protocol of a training: what was ordered, the units in which it runs, how far it has come.

The engine opens it and knows how it is done; the host decides when each unit runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from fmplex_broker.packages.package import Package
from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.fitting_text import TextLoraSpec


@dataclass(frozen=True, slots=True)
class TuneOrder:
    """An order to train. `spec.data`: where the examples lie on this machine; its `out` is not written, its `model` not loaded.

    `validation`: a file of examples to validate on, instead of a slice of the training part; `start`: the package of a version
    whose adapter the training goes on from; `memory`: bytes of the device that it may take; None: no limit.
    """

    spec: FitSpec | TextLoraSpec
    validation: Path | None = None
    start: Package | None = None
    memory: int | None = None


class MemoryNeed(NamedTuple):
    """Bytes of the device that a training takes: at `least`, where all layers compute their activations again, and at `most`."""

    least: int
    most: int


class Unit(NamedTuple):
    """A piece of training that is run as a whole, on the device thread, once, and in order.

    `tokens`: of the packed row that it goes through, 0 if through none; `cost`: relative to other units of the training (tokens
    times layers, a recompute counted, a backward by what it takes of a forward). A `check` computes no gradients. `run` raises
    what ends the training (`NonFiniteOutput`), but not a lack of memory: then `next` gives smaller units.
    """

    kind: Literal["forward", "loss", "backward", "step", "check"]
    tokens: int
    cost: float
    run: Callable[[], None]


class HeldOut(NamedTuple):
    """Scores by `metric` on examples that were never trained on; `baseline`: of an answer that does not look at the text or,
    where text is generated, of the backbone alone."""

    metric: str
    score: float
    baseline: float


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a training has come: `step` of `steps` at most, in `epoch` (from 1; 0: none has begun).

    `loss`: of the last step; `validation_loss` and `validation_score` (higher is better): of the last evaluation; `tokens` that
    were trained on; `best_step`: after how many steps the state was best; `warnings`: what went wrong and was mended. `ended`:
    why it has; `held_out`: the scores, once it has.
    """

    step: int
    steps: int
    epoch: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    validation_score: float | None = None
    tokens: int = 0
    best_step: int = 0
    ended: Literal["", "finished", "stopped early"] = ""
    held_out: HeldOut | None = None
    warnings: tuple[str, ...] = ()


class Snapshot(Protocol):
    """The state of a training after some step: whatever runs on does not change it."""

    @property
    def step(self) -> int:
        """The step that it was taken after."""

    def dump(self) -> bytes:
        """Serialise it, for `Engine.tune`. Any thread."""

    def package(self) -> dict[str, bytes]:
        """Return the files of the vFM's package (`packages.FILES`, and vfm.toml) as of this state. Any thread, also while a unit
        runs."""


class Training(Protocol):
    """A training as a stream of units: a pure function of its order, whoever runs the units, and wherever it is cut.

    `next` and the units it returns: device thread only. All else from any thread, but not while a unit runs.
    """

    def next(self) -> Unit | None:
        """Return the unit to run next; the one before has been run. None: it has ended.

        Raises `NonFiniteOutput` (diverged, also at half the rate) and `JobFailed` (does not fit into the device's memory).
        """

    @property
    def progress(self) -> RunProgress:
        """How far it has come."""

    @property
    def needs(self) -> MemoryNeed:
        """Bytes of the device that it takes, whatever it is given."""

    @property
    def holds(self) -> int:
        """Bytes that it takes now at most, its running micro-batch included. Any thread, at any time."""

    def limit(self, nbytes: int) -> None:
        """Take no more than so many bytes, `needs.least` or more, from the next micro-batch on: more or fewer layers compute
        again, which changes no result. Any thread, at any time."""

    @property
    def checkpoint_due(self) -> bool:
        """Tell whether there is something new to save since the last `snapshot`."""

    def snapshot(self) -> Snapshot:
        """Return its state as of the last point at which it may be cut, at most a few steps ago; it takes no time."""

    def package(self) -> dict[str, bytes]:
        """Return the files of the vFM's package (`packages.FILES`, and vfm.toml) as of the best state."""
