"""How many jobs a worker may claim. Pure: `now` is passed in (monotonic seconds).

A worker holds `passes` passes of interactive work and two of offline work, so that the next pass is always at hand while one
runs, and yet nobody's turn is decided here long before it comes.
"""

from __future__ import annotations

from fmplex_broker.streams.claims import CLAIM_ROOM, Order
from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, Flow
from fmplex_worker.host.passes import PassProgress

_SMOOTH = 0.05
_OFFLINE_PASSES = 2  # one that runs, and the one behind it


class ClaimRoom:
    """Units of jobs that have not begun, by class and flow, against what the next passes hold. `pass_units`: a full pass's.

    `order` "arrival" passes over no flow: whoever came first fills the room, as first in, first out has it.
    """

    def __init__(self, pass_units: int, passes: int, progress: PassProgress, order: Order = "fair") -> None:
        self.pass_units = pass_units
        self._fair = order == "fair"
        self._progress = progress
        self._passes = {cls: passes if cls == INTERACTIVE else _OFFLINE_PASSES for cls in CLASSES}
        self._taken = dict.fromkeys(CLASSES, 0)
        self._by_flow: dict[Flow, int] = {}
        self._typical = dict.fromkeys(CLASSES, 16.0)  # units a job
        self.overflowing: set[Flow] = set()  # of which one claim brought more than all passes hold: long prompts

    @property
    def taken(self) -> dict[str, int]:
        """Units of jobs that have not begun, by class."""
        return dict(self._taken)

    def add(self, flow: Flow, units: int) -> None:
        """Count so many more units of a flow; fewer, if negative."""
        if not units:
            return
        self._taken[flow.cls] += units
        left = self._by_flow[flow] = self._by_flow.get(flow, 0) + units
        if self._fair and flow.cls == INTERACTIVE:
            whole = self.pass_units * self._passes[INTERACTIVE]
            (self.overflowing.add if left > whole else self.overflowing.discard)(flow)
        if not left:
            del self._by_flow[flow]

    def learn(self, cls: str, units: int) -> None:
        """Take a prepared job's units into the mean that tells how many jobs fill the room that is left."""
        self._typical[cls] += (units - self._typical[cls]) * _SMOOTH

    def jobs(self, now: float) -> dict[str, int]:
        """Return how many jobs to claim, by class; classes without room are left out.

        One job always fits where there is any room: texts may be longer than all that is held. Room is given up as the running
        pass runs and not when it ends: who has just come would find none, and miss the pass behind it.
        """
        left = {
            cls: self.pass_units * self._passes[cls] - self._closed(cls) + self._progress.done_units(cls, now)
            for cls in CLASSES
        }
        return {cls: min(max(1, int(n / self._typical[cls])), CLAIM_ROOM) for cls, n in left.items() if n > 0}

    def _closed(self, cls: str) -> int:
        """Return the units that leave no room: overflowing flows leave a pass's worth to the others."""
        if cls != INTERACTIVE or not self.overflowing:
            return self._taken[cls]
        large = sum(self._by_flow[flow] for flow in self.overflowing)
        return self._taken[cls] - large + min(large, self.pass_units * (self._passes[cls] - 1))
