"""Records of passes, as workers make them for `fmplex trace`, on the wire and in a file. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from fmplex_broker.wire.messages import packb, unpackb

VERSION = 1
TRAINING = "training"  # in place of a class: the device was lent to units of training


@dataclass(slots=True)
class PassPart:
    """One vFM's part of a pass. `charged_s`: device seconds it was charged; `wait_ms`: how long the one of its jobs that waited
    longest had waited for the pass, from enqueue on; `weight`: its share."""

    vfm: str
    jobs: int = 0
    units: int = 0
    charged_s: float = 0.0
    wait_ms: float = 0.0
    weight: float = 1.0


@dataclass(slots=True)
class PassRecord:
    """One pass of one worker. Its `number` counts the worker's passes. It began at `start_ms` (server time) and took `seconds`,
    `predicted_s` by the cost model when it was planned; then a full pass had `budget` units, and `waiting` jobs were left.

    `cls` TRAINING: no pass, but units of one training in a row, without a number; its one part says how many (`jobs`), and of how
    many tokens at most (`units`).
    """

    worker: str
    backbone: str
    number: int
    cls: str
    start_ms: float
    seconds: float
    predicted_s: float
    units: int
    budget: int
    waiting: int
    parts: list[PassPart] = field(default_factory=list)

    def to_wire(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> PassRecord:
        """Read a record from plain values. Raises `ValueError` for what is not a pass of this version."""
        try:
            return cls(**wire | {"parts": [PassPart(**part) for part in wire["parts"]]})
        except (TypeError, KeyError) as e:
            raise ValueError(f"not a pass of version {VERSION}: {e}") from e


class PassReport(NamedTuple):
    """The passes that a worker has landed since its last report, perhaps none."""

    worker: str
    passes: list[PassRecord]


def encode_pass_report(worker: str, passes: Sequence[PassRecord]) -> bytes:
    """Encode a worker's report of its passes."""
    return packb([VERSION, worker, [record.to_wire() for record in passes]])


def decode_pass_report(data: bytes) -> PassReport:
    """Decode a worker's report of its passes. Raises `ValueError` for bytes of another version."""
    wire = unpackb(data)
    if not isinstance(wire, list) or len(wire) != 3 or wire[0] != VERSION:
        raise ValueError(f"not a report of passes of version {VERSION}")
    return PassReport(wire[1], [PassRecord.from_wire(record) for record in wire[2]])
