"""The protocol of an engine, whatever the backbone: load versions, prepare jobs, run passes, train.

Several threads may call one engine at the same time: fetchers (`fit`), a loader (`load`, `unload`), the intake's (`prepare`) and
the device thread (`step`). A version is keyed by the digest of its artifact, never by its name: all that one engine loads is for
the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.wire.messages import Request
from fmplex_broker.wire.streaming import Delta
from fmplex_worker.ledger import UNPLANNED, Ledger
from fmplex_worker.training import Training, TuneOrder

Kind = Literal["encode", "generate"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts that a worker tells the registry. `max_tokens` bounds one encoded text; `memory_bytes` is the backbone alone;
    `fingerprint`: of what decides its outputs; `threads` that it computes with on a CPU; `ledger`: of its device's memory;
    `generates`: whether it has a language-model head."""

    name: str
    modality: str
    hidden: int
    max_tokens: int
    device: str
    memory_bytes: int
    fingerprint: Fingerprint
    threads: int = 1
    ledger: Ledger = UNPLANNED
    generates: bool = False


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room of one pass now: `units` = packed tokens. One job larger than that still runs, alone. `memory`: bytes that the jobs in
    hand may hold between their passes, all together, and `used` those that they do hold; `cached`: bytes kept for jobs to come
    while nobody needs them."""

    units: int
    memory: int = 0
    used: int = 0
    cached: int = 0


class Piece(NamedTuple):
    """Part of a job that fits into one pass: so many `tokens` of it, which cost `units`."""

    phase: Literal["encode", "prefill", "decode"]
    tokens: int
    units: int


class Work(NamedTuple):
    """A job in a pass, with the tokens of all its pieces in it."""

    prepared: Prepared
    tokens: int

    @property
    def digest(self) -> str:
        """Digest of the job's version."""
        return self.prepared.digest


class Progress(NamedTuple):
    """Result of a job that has not ended with its pass; `news`: the text that has come out meanwhile, if any has."""

    news: Delta | None


class Fitted(Protocol):
    """A version that has been checked and fitted to the backbone."""

    @property
    def digest(self) -> str:
        """Digest of its package, which is its key."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in host memory, and will take on the device; on a CPU these are the same bytes."""


class Prepared(Protocol):
    """A validated, tokenised job. It keeps its version alive: unloading that version does not break it.

    `adapter` and `head` are numbers, so that a cost model can count the distinct ones in a pass.
    """

    @property
    def kind(self) -> Kind:
        """The workload that it belongs to."""

    @property
    def digest(self) -> str:
        """Digest of its version."""

    @property
    def units(self) -> int:
        """Packed tokens (both sides of a similarity; the virtual tokens of a prompt too)."""

    @property
    def adapter(self) -> int:
        """Number of the adapter segment that it belongs to; 0: none."""

    @property
    def head(self) -> int:
        """Number of the head or heads that it ends in; 0: none of its own."""

    @property
    def memory(self) -> int:
        """Bytes that it holds between passes, once its `pieces` have run; it must have room for them before they do."""

    def pieces(self) -> Sequence[Piece]:
        """List its pieces for the passes to come, in order, at least for the next one. After a pass it is asked again."""


class OnePass:
    """The part of `Prepared` that is the same for all jobs that are done in one pass."""

    __slots__ = ()
    units: int

    @property
    def kind(self) -> Kind:
        """The encoding workload."""
        return "encode"

    @property
    def memory(self) -> int:
        """0: it holds nothing between passes."""
        return 0

    def pieces(self) -> Sequence[Piece]:
        """Return the one piece that is all of the job."""
        return (Piece("encode", self.units, self.units),)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Cost and results of a pass: wall `seconds` of the device thread; `results[i]` answers `work[i]`. `ended`: monotonic
    seconds, when it was made.

    A result is a `Progress`, or the end of the job: what the vFM's head gives (plain Python values and
    `fmplex_broker.wire.tensors.Tensor`), with several heads a mapping of their names to that, or the error of that job alone.
    """

    seconds: float
    results: list[Any | FmplexError]
    ended: float = field(default_factory=time.monotonic)


class Engine(Protocol):
    """One physical FM on one device."""

    @property
    def info(self) -> EngineInfo:
        """Facts for the registry; they never change."""

    @property
    def capacity(self) -> Capacity:
        """Room of a pass, and memory of the jobs in hand, now."""

    @property
    def loaded(self) -> Mapping[str, int]:
        """Digest of every resident version → bytes of all that it holds on the device. A snapshot."""

    @property
    def device_bytes(self) -> int:
        """Bytes of the device's own memory that this process holds; 0 on a CPU. Any thread."""

    def aim(self, units: int) -> None:
        """Cut jobs into pieces for passes of `units` at most from now on."""

    def fit(self, package: Package) -> Fitted:
        """Make a version ready to be loaded, in host memory. Any thread, several at a time. Raises `PackageRejected`."""

    def load(self, fitted: Fitted) -> None:
        """Make a version resident; again is a no-op. Any thread, also while a pass runs."""

    def unload(self, digest: str) -> None:
        """Forget a version (unknown: no-op). Jobs already prepared for it still run; its memory is free when the last of them
        is gone, at once if there is none."""

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        """Validate and tokenise, all at once. Aligned with `batch`; never raises for what a caller sent. Any thread.

        Errors: `InvalidInput` (`field` is a path: `input.text_pair`, `params.top_k`), `TextTooLong`, `VfmClosed` (the
        version is not resident here).
        """

    def quick(self, digest: str, request: Request) -> bool:
        """Tell whether it takes but a moment to prepare a request: its texts are short, and nothing that others wrote has to be
        compiled or rendered for it. Takes no time itself; what is no valid request is quick."""

    def drop(self, prepared: Prepared) -> None:
        """Forget what the job holds between passes. It is in no pass that is planned or runs; should it run again, it asks for
        all that it needs. Any thread."""

    def step(self, work: Sequence[Work]) -> Outcome:
        """Run one pass. Device thread only; a failure is the result of the jobs it hits, not an exception.

        Raises only when the device itself is broken ("CUDA error: ..."): no pass can run here again, so the worker
        should end without settling these jobs, and another one takes them over.
        """

    def tune(self, order: TuneOrder, state: bytes | None) -> Training:
        """Open a training, or go on with one that was cut (`state`: a snapshot of it, dumped). Takes a while; any thread, also
        while a pass runs.

        Raises `InvalidInput`: bad examples by their lines, what cannot be trained here, a state of another training; `TooLarge`:
        more than `memory` whatever is recomputed.
        """
