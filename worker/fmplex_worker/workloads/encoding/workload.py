"""The encoding workload: every job is done in one pass, in which its texts are encoded whole and its heads read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from fmplex_broker.errors import FmplexError
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.heads.running import HEAD_KINDS, run_heads
from fmplex_worker.packed.row import TokenSpan
from fmplex_worker.protocol import Kind, Prepared, Work
from fmplex_worker.versions import Version
from fmplex_worker.workloads.base import MemoryUse, PassOutput, PassText, PlacedWork, short
from fmplex_worker.workloads.encoding.preparing import EncodeJob, EncodePreparer


class EncodingWorkload:
    """`fmplex_worker.workloads.base.Workload` of encoders, and of decoders used as encoders."""

    kind: Kind = "encode"
    head_kinds = HEAD_KINDS
    memory = MemoryUse()  # nothing is held between passes

    def __init__(self, backbone: Backbone) -> None:
        self._preparer = EncodePreparer(backbone)

    def aim(self, units: int) -> None:
        """Do nothing: a text is encoded whole, however short passes are."""

    def accept(self, version: Version) -> None:
        """Do nothing: a version whose heads fit the backbone is ready."""

    def forget(self, digest: str) -> None:
        """Do nothing: nothing is kept for jobs to come."""

    def prepare(self, batch: Sequence[tuple[Version, Request]]) -> list[Prepared | FmplexError]:
        """Validate and tokenise requests, all at once; see `Workload.prepare`."""
        return cast(list[Prepared | FmplexError], self._preparer.prepare(batch))

    def quick(self, version: Version, request: Request) -> bool:
        """Tell whether the texts are short; see `Workload.quick`."""
        return short(request.input)

    def lay_out(self, work: Work) -> Sequence[PassText]:
        """Return the texts of a job, whole; see `Workload.lay_out`."""
        job = cast(EncodeJob, work.prepared)
        return [PassText(text, TokenSpan(text.tokens, job.version.adapter)) for text in job.texts]

    def read(self, output: PassOutput, placed: Sequence[PlacedWork]) -> list[Any]:
        """Run the heads of all jobs; a reading is the result of its job. See `Workload.read`."""
        requests = [cast(EncodeJob, work.prepared).head_request for work, _ in placed]
        return run_heads(output.hidden, *output.row.own(), requests, [places for _, places in placed])

    def commit(self, work: Work, reading: Any) -> Any:
        """Return the reading: the job has ended. See `Workload.commit`."""
        return reading

    def halve(self, work: Work) -> Work | None:
        """Return None: a text is encoded whole."""
        return None

    def drop(self, prepared: Prepared) -> None:
        """Do nothing: nothing is held between passes."""
