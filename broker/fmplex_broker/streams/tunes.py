"""Tuning jobs, as those see them who order and ask: their records in Redis, fleet-wide by owner.

A record lies in the slot of its backbone, where the lease of its worker fences it (`tune_owner.py`); an owner's list says on
which. Keys: `keys.py`. Times are the server's.
"""

from __future__ import annotations

from fmplex_broker.specs.tune_records import Checkpoint, TuneError, TuneEvent, TuneRecord, Wish
from fmplex_broker.specs.tuning import TuneSpec
from fmplex_broker.streams.connection import Client, Scripts
from fmplex_broker.streams.file_list import FileList

KEPT_S = 30 * 86_400  # the record of a tuning job and its checkpoints, after it has ended
MOST_OPEN = 100  # of an owner, on a backbone
CHECK_MS = 30_000


class Tunes:
    """The records of all tuning jobs. One of another owner looks exactly like one that is not there. Raises as `broker_errors`
    does."""

    def __init__(self, redis: Client, scripts: Scripts) -> None:
        self._redis = redis
        self._scripts = scripts
        self._files = FileList(redis)

    # --- for who orders ---

    async def add(self, spec: TuneSpec) -> TuneRecord:
        """Add a tuning job, whose files are still to be looked through; again changes nothing. It holds its files until it ends.

        Raises `Conflict` while no worker of its backbone tunes at all, `UnknownFile`, and `Busy` when its owner has too many open
        ones.
        """
        raise NotImplementedError

    async def find(self, job: str, owner: str) -> TuneRecord:
        """Read the record of a tuning job. Raises `UnknownTune`."""
        raise NotImplementedError

    async def page(self, owner: str, limit: int = 20, after: str = "") -> tuple[list[TuneRecord], bool]:
        """Read the first `limit` tuning jobs of an owner, the newest first, that were made before the job `after`; True if there
        are more. Raises `InvalidInput` for an `after` that no tuning job can have."""
        raise NotImplementedError

    async def ask(self, job: str, owner: str, wish: Wish) -> TuneRecord:
        """Pause, resume or cancel a tuning job, at once; a worker that has it in hand keeps what was learnt and gives it back. To
        cancel again changes nothing. Raises `UnknownTune`, and `Conflict` in a state in which that cannot be."""
        raise NotImplementedError

    async def events(
        self, job: str, owner: str, limit: int = 20, after: str = "", *, oldest_first: bool = False
    ) -> tuple[list[TuneEvent], bool]:
        """Read `limit` events of a tuning job, the newest first, that are older than the event `after` (an id); True if there are
        more. `oldest_first`: the other way round, those that are newer than `after`. Raises `UnknownTune`, `InvalidInput`."""
        raise NotImplementedError

    async def checkpoints(
        self, job: str, owner: str, limit: int = 10, after: str = ""
    ) -> tuple[list[Checkpoint], bool]:
        """Return the first `limit` checkpoints of a tuning job that are kept, the newest first, before the checkpoint `after` (an
        id); True if there are more. Raises `UnknownTune`, `InvalidInput`."""
        raise NotImplementedError

    # --- for who looks through files ---

    async def take_unchecked(self, most: int, lease_ms: int = CHECK_MS) -> list[TuneRecord]:
        """Take tuning jobs of all backbones whose files nobody looks through now, for `lease_ms`. Who takes longer finds the same
        as who comes then; either may say it. `checks` of a record counts how often it was taken."""
        raise NotImplementedError

    async def checked(self, record: TuneRecord, error: TuneError | None = None, examples: int = 0) -> TuneRecord:
        """Say what was found in the files of a tuning job: an `error` with which it fails, else how many `examples`, and it waits
        for a worker. Changes nothing for one in any other state. Returns what it is afterwards."""
        raise NotImplementedError

    async def tidy(self, backbone: str) -> None:
        """Let go the files of tuning jobs that have ended. Whoever ends one does that; this is for those who died of it."""
        raise NotImplementedError
