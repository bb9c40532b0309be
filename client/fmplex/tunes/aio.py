"""Tuning jobs, for code with an event loop: `client.tune` and `client.tunes` of an `AsyncClient`."""

from __future__ import annotations

from collections.abc import Callable

from fmplex.call import wait_s
from fmplex.following import Ask, all_pages
from fmplex.transport import Transport
from fmplex.tunes.calls import TuneCalls
from fmplex.tunes.core import TuneCore
from fmplex.tunes.ordering import TuneOrder, begin
from fmplex.tunes.records import TuneCheckpointInfo, TuneEventInfo, TuneInfo
from fmplex_broker.specs.vfm_info import VfmInfo


class AsyncTune:
    """A tuning job: a vFM that the fleet trains beside what it serves, whether or not this program is there. `core`: what does
    the work."""

    def __init__(self, core: TuneCore) -> None:
        self._core = core

    @property
    def id(self) -> str:
        """Its name, by which `client.tunes.get` finds it again."""
        return self._core.info.id

    @property
    def status(self) -> str:
        """How far it was when it was last looked at: `TuneInfo.status`."""
        return self._core.info.status

    @property
    def info(self) -> TuneInfo:
        """All that is known of it since it was last looked at."""
        return self._core.info

    async def refresh(self) -> TuneInfo:
        """Look at it now; return what is known of it."""
        return await self._core.refresh()

    async def wait(self, timeout: float | None = None, progress: bool = False) -> TuneInfo:
        """Wait for its end, at most `timeout` seconds (None: as long as it takes); return what is known of it then, also if it
        has failed.

        `progress`: draw a bar on standard error. Raises `TimeoutError` (the job goes on; wait again), or `Unavailable` when the
        gateway has been away for ten minutes.
        """
        return await self._core.wait(wait_s(timeout), progress)

    async def cancel(self) -> TuneInfo:
        """End it; what was learnt stays in its checkpoints. Again is no mistake. Raises `Conflict` if it has ended otherwise."""
        return await self._core.wish("cancel")

    async def pause(self) -> TuneInfo:
        """Let it rest: what was learnt is kept. Raises `Conflict` where it neither runs nor waits for a worker."""
        return await self._core.wish("pause")

    async def resume(self) -> TuneInfo:
        """Let it go on from where it was, on whichever worker. Raises `Conflict` unless it is paused."""
        return await self._core.wish("resume")

    async def events(self, after: str | None = None) -> list[TuneEventInfo]:
        """List what it has said, oldest first: all of it, or what came after the event `after` (an id)."""
        return await self._core.events(after)

    async def checkpoints(self) -> list[TuneCheckpointInfo]:
        """List its checkpoints that are kept, newest first: the best and the last two."""
        return await self._core.checkpoints()


class AsyncTunes:
    """The tuning jobs of whoever asks: `client.tunes` of an `AsyncClient`. They are ordered from a gateway: straight to the
    broker all methods raise `InvalidInput`.

    All raise `Unauthorized`, `Forbidden` or `Unavailable`. `ask`: how to ask for them, again where that helps; `transport`: for
    what is asked once.
    """

    def __init__(self, ask: Ask[TuneCalls], transport: Callable[[], Transport]) -> None:
        self._ask = ask
        self._transport = transport

    async def submit(self, order: TuneOrder) -> AsyncTune:
        """Send an `order` with its files, as `client.tune` makes it; return the job."""
        info = await begin(self._ask, order)
        return AsyncTune(TuneCore(self._ask, info))

    async def get(self, id: str) -> AsyncTune:
        """Return the tuning job called `id` as it is now."""
        info = await self._ask(lambda calls: calls.show(id))
        return AsyncTune(TuneCore(self._ask, info))

    async def deploy(self, checkpoint: str, name: str, *, update: bool = False) -> VfmInfo:
        """Deploy a `checkpoint` (an id, as `checkpoints()` of a job lists them) as a new vFM called `name`, or, with `update`, as
        the next version of that one; return the vFM once every worker has accepted it. Raises as `client.vfms.deploy` does."""
        return await self._transport().tune_calls().deploy(checkpoint, name, update=update)

    async def list(self, limit: int | None = None) -> list[AsyncTune]:
        """List tuning jobs, newest first: all of them, or the first `limit`."""
        found = await all_pages(self._ask, TuneCalls.page, limit)
        return [AsyncTune(TuneCore(self._ask, info)) for info in found]
