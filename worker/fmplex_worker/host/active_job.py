"""One job in a worker's hands."""

from __future__ import annotations

from dataclasses import dataclass, field

from fmplex_broker.errors import FmplexError
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import Flow
from fmplex_worker.host.job_state import ENDS, TAKES_ROOM, JobState
from fmplex_worker.protocol import Piece, Prepared


@dataclass(slots=True, eq=False)
class ActiveJob:
    """A job from claim to settlement, `since` when (monotonic seconds); `enqueued_ms`: when it was sent (server time).

    `prepared`: what the engine made of it, from PREPARING's end on; `units`: its estimated, then its real ones. `pieces`: of it
    that wait for a pass, by their keys; `in_pass`: how many are in one. `cancelled`: why it ends when its pass does, if nobody
    waits for it any more; `evicted`: whether it gives up its memory then. It waited `load_ms` for its version and `wait_ms` for
    the first of its passes to begin; they took `run_ms` and were charged `charged` units. `streams`: whether its caller reads
    along; of its text `generated` tokens have come, the last at `token_ms` (server time).
    """

    claimed: Claimed
    since: float
    state: JobState = JobState.CLAIMED
    enqueued_ms: int = field(init=False)
    prepared: Prepared = field(init=False)
    units: int = field(init=False)
    pieces: dict[str, Piece] = field(default_factory=dict)
    piece_number: int = 0
    in_pass: int = 0
    cancelled: FmplexError | None = None
    evicted: bool = False
    load_ms: float = 0.0
    wait_ms: float | None = None
    run_ms: float = 0.0
    charged: float = 0.0
    streams: bool = False
    generated: int = 0
    token_ms: float = 0.0

    def __post_init__(self) -> None:
        self.units = self.claimed.units
        self.enqueued_ms = self.claimed.enqueued_ms

    @property
    def key(self) -> str:
        """The stream and entry that it came from."""
        return f"{self.claimed.address} {self.claimed.entry}"

    @property
    def flow(self) -> Flow:
        """Its vFM and class."""
        return self.claimed.flow

    @property
    def version(self) -> str:
        """The version that it runs on."""
        return self.claimed.version

    @property
    def digest(self) -> str:
        """Digest of the artifact of its version: what is loaded here under that key."""
        return artifact_of(self.claimed.version)

    @property
    def begun(self) -> bool:
        """Whether its first pass has ended and it goes on."""
        return self.wait_ms is not None

    @property
    def ended(self) -> bool:
        """Whether it has a reply, or is not this worker's any more."""
        return self.state in ENDS

    @property
    def redelivered(self) -> bool:
        """Whether a worker has died with it in hand, as it ran or was being prepared."""
        return self.claimed.attempts > 1

    @property
    def room(self) -> int:
        """The units of claim room that it takes: none from its first pass on."""
        return self.units if self.state in TAKES_ROOM and not self.begun else 0
