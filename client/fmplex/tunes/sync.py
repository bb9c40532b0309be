"""Tuning jobs, for code without an event loop: `client.tune` and `client.tunes` of a `Client`."""

from __future__ import annotations

import time
from collections.abc import Callable

from fmplex.call import wait_s
from fmplex.following import Ask, all_pages
from fmplex.loop_thread import LoopThread
from fmplex.transport import Transport
from fmplex.tunes.calls import TuneCalls
from fmplex.tunes.core import TuneCore, TuneWatch
from fmplex.tunes.ordering import TuneOrder, begin
from fmplex.tunes.records import TuneCheckpointInfo, TuneEventInfo, TuneInfo
from fmplex_broker.specs.vfm_info import VfmInfo


class Tune:
    """A tuning job: a vFM that the fleet trains beside what it serves, whether or not this program is there. `core`: what does
    the work, on `loop`."""

    def __init__(self, core: TuneCore, loop: LoopThread) -> None:
        self._core = core
        self._loop = loop

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

    def refresh(self) -> TuneInfo:
        """Look at it now; return what is known of it."""
        return self._loop.run(self._core.refresh())

    def wait(self, timeout: float | None = None, progress: bool = False) -> TuneInfo:
        """Wait for its end, at most `timeout` seconds (None: as long as it takes); return what is known of it then, also if it
        has failed.

        `progress`: draw a bar on standard error. Raises `TimeoutError` (the job goes on; wait again), or `Unavailable` when the
        gateway has been away for ten minutes.
        """
        with TuneWatch(wait_s(timeout), progress) as watch:
            while not self._loop.run(self._core.look(watch)):
                time.sleep(watch.pause_s())
        return self._core.info

    def cancel(self) -> TuneInfo:
        """End it; what was learnt stays in its checkpoints. Again is no mistake. Raises `Conflict` if it has ended otherwise."""
        return self._loop.run(self._core.wish("cancel"))

    def pause(self) -> TuneInfo:
        """Let it rest: what was learnt is kept. Raises `Conflict` where it neither runs nor waits for a worker."""
        return self._loop.run(self._core.wish("pause"))

    def resume(self) -> TuneInfo:
        """Let it go on from where it was, on whichever worker. Raises `Conflict` unless it is paused."""
        return self._loop.run(self._core.wish("resume"))

    def events(self, after: str | None = None) -> list[TuneEventInfo]:
        """List what it has said, oldest first: all of it, or what came after the event `after` (an id)."""
        return self._loop.run(self._core.events(after))

    def checkpoints(self) -> list[TuneCheckpointInfo]:
        """List its checkpoints that are kept, newest first: the best and the last two."""
        return self._loop.run(self._core.checkpoints())


class Tunes:
    """The tuning jobs of whoever asks: `client.tunes` of a `Client`. They are ordered from a gateway: straight to the
    broker all methods raise `InvalidInput`.

    All raise `Unauthorized`, `Forbidden` or `Unavailable`. `ask`: how to ask for them, again where that helps; `transport`: for
    what is asked once; `loop`: where.
    """

    def __init__(self, ask: Ask[TuneCalls], transport: Callable[[], Transport], loop: LoopThread) -> None:
        self._ask = ask
        self._transport = transport
        self._loop = loop

    def submit(self, order: TuneOrder) -> Tune:
        """Send an `order` with its files, as `client.tune` makes it; return the job."""
        info = self._loop.run(begin(self._ask, order))
        return Tune(TuneCore(self._ask, info), self._loop)

    def get(self, id: str) -> Tune:
        """Return the tuning job called `id` as it is now."""
        info = self._loop.run(self._ask(lambda calls: calls.show(id)))
        return Tune(TuneCore(self._ask, info), self._loop)

    def deploy(self, checkpoint: str, name: str, *, update: bool = False) -> VfmInfo:
        """Deploy a `checkpoint` (an id, as `checkpoints()` of a job lists them) as a new vFM called `name`, or, with `update`, as
        the next version of that one; return the vFM once every worker has accepted it. Raises as `client.vfms.deploy` does."""
        return self._loop.run(self._deploy(checkpoint, name, update))

    def list(self, limit: int | None = None) -> list[Tune]:
        """List tuning jobs, newest first: all of them, or the first `limit`."""
        found = self._loop.run(all_pages(self._ask, TuneCalls.page, limit))
        return [Tune(TuneCore(self._ask, info), self._loop) for info in found]

    async def _deploy(self, checkpoint: str, name: str, update: bool) -> VfmInfo:
        return await self._transport().tune_calls().deploy(checkpoint, name, update=update)
