"""The protocol of a workload, and the values that it and the engine exchange in a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from fmplex_broker.errors import FmplexError
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.texts import Text
from fmplex_worker.packed.row import Pack, TokenSpan
from fmplex_worker.protocol import Kind, Prepared, Work
from fmplex_worker.versions import Version

_SHORT = 16_384  # characters that are tokenised in a few milliseconds, and token ids that are read in as many


def short(value: Any) -> bool:
    """Tell whether an input is short, whatever it is: the texts, or the token ids, that are in it all together."""
    left, found = [value], 0
    while left and found <= _SHORT:
        part = left.pop()
        if isinstance(part, str):
            found += len(part)
        elif isinstance(part, dict):
            left += part.values()
        elif isinstance(part, list):
            found += len(part)
            if part and not isinstance(part[0], int):
                left += part
    return found <= _SHORT


class MemoryUse(NamedTuple):
    """Bytes that the jobs of a workload hold between passes: `budget` at most, `used` now, `cached` for jobs to come."""

    budget: int = 0
    used: int = 0
    cached: int = 0


class PassText(NamedTuple):
    """One text of a pass: what the backbone reads of it, and the span that it takes in the packed row."""

    text: Text
    span: TokenSpan


class PlacedWork(NamedTuple):
    """A job in a pass that has run; `places`: where its texts are in the row, in the order in which it laid them out."""

    work: Work
    places: tuple[int, ...]


class PassOutput(NamedTuple):
    """The output of the backbone: hidden states `[tokens, width]` of a packed row."""

    hidden: Tensor
    row: Pack


class Workload(Protocol):
    """One kind of work on a backbone. An engine has any number of them, each with head kinds and a job kind of its own.

    In every pass the engine calls `lay_out` for each job, then `read` once for all of the workload's jobs, then `commit` for each
    job. A pass that fails runs again in parts, so only `commit` may change how far a job has come.
    """

    @property
    def kind(self) -> Kind:
        """The kind of its jobs, see `Prepared.kind`."""

    @property
    def head_kinds(self) -> frozenset[str]:
        """Kinds of heads that it serves; a version is its own if all heads of the version are of these."""

    @property
    def memory(self) -> MemoryUse:
        """Bytes that its jobs hold between passes. Any thread."""

    def aim(self, units: int) -> None:
        """Cut jobs into pieces for passes of `units` at most from now on; see `Engine.aim`."""

    def accept(self, version: Version) -> None:
        """Check a fitted version of its own, and get ready for requests. Any thread. Raises `PackageRejected`."""

    def forget(self, digest: str) -> None:
        """Free what is kept for jobs to come of a version that is not served here any more. Any thread."""

    def prepare(self, batch: Sequence[tuple[Version, Request]]) -> list[Prepared | FmplexError]:
        """Validate and tokenise requests for versions of its own. Aligned with `batch`; see `Engine.prepare`."""

    def quick(self, version: Version, request: Request) -> bool:
        """Tell whether it takes but a moment to prepare a request; see `Engine.quick`."""

    def lay_out(self, work: Work) -> Sequence[PassText]:
        """Return the texts of a job in the next pass, one at least; give it the memory that it needs for them."""

    def read(self, output: PassOutput, placed: Sequence[PlacedWork]) -> list[Any]:
        """Read what the pass gave its jobs (one at least) from the hidden states, one reading a job. Changes no job."""

    def commit(self, work: Work, reading: Any) -> Any:
        """Advance a job by what was read for it, now that all of the pass has run; return its result, see `Outcome`."""

    def halve(self, work: Work) -> Work | None:
        """Return the work with half as many tokens, if the others can come in later passes; else None."""

    def drop(self, prepared: Prepared) -> None:
        """Free what a job holds between passes; see `Engine.drop`."""
