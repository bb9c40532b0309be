"""What both kinds of tuning jobs do, on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from fmplex.batches.watching import Waiting
from fmplex.tunes.calls import PAGE, Ask, TuneCalls
from fmplex.tunes.records import TuneCheckpointInfo, TuneEventInfo, TuneInfo
from fmplex_broker.errors import InvalidInput, Unavailable

R = TypeVar("R", TuneInfo, TuneEventInfo, TuneCheckpointInfo)


class TuneWatch(Waiting):
    """Watches one tuning job: its step, losses, tokens a second and share of the device."""

    def saw(self, info: TuneInfo) -> bool:
        """Take the job as it is now; return whether it has ended. Raises `TimeoutError`."""
        progress = info.progress
        self._bar.update(
            self._task, description=info.status, total=progress.steps or None, completed=progress.step, rate=now_of(info),
            failed="" if info.error is None else info.error.code,
        )  # fmt: skip
        return self.heard(info.id, ended=info.ended)


def now_of(info: TuneInfo) -> str:
    """Say in a few words how a tuning job does now."""
    progress = info.progress
    figures = [("loss {:.4g}", progress.loss), ("validation {:.4g}", progress.validation)]
    if not info.ended:
        figures += [("{:,.0f} tokens/s", progress.tokens_s), ("{:.0%} of the device", progress.share)]
    words = [form.format(value) for form, value in figures if value is not None]
    if not info.ended and info.estimated_finish is not None:
        words.append(f"until {datetime.fromtimestamp(info.estimated_finish):%H:%M}")
    return "  ".join(words)


class TuneCore:
    """One tuning job, as it was when it was last looked at: `info`. `ask`: for what it needs."""

    def __init__(self, ask: Ask, info: TuneInfo) -> None:
        self._ask = ask
        self.info = info

    async def refresh(self) -> TuneInfo:
        """Look at the job."""
        self.info = await self._ask(lambda calls: calls.show(self.info.id))
        return self.info

    async def wish(self, what: str) -> TuneInfo:
        """Cancel, pause or resume the job. Raises `Conflict` in a state in which that cannot be."""
        self.info = await self._ask(lambda calls: calls.ask(self.info.id, what))
        return self.info

    async def look(self, watch: TuneWatch) -> bool:
        """Look at the job on behalf of somebody who waits; return whether it has ended. Raises as `Waiting` does."""
        await self._ask(lambda calls: calls.ready())  # a closed client is not one whose gateway is away
        try:
            return watch.saw(self.info if self.info.ended else await self.refresh())
        except Unavailable as e:
            watch.missed(self.info.id, e)
            return False

    async def wait(self, timeout: float | None, progress: bool = False) -> TuneInfo:
        """Wait for the job's end, at most `timeout` seconds. Raises as `Waiting` does."""
        with TuneWatch(timeout, progress) as watch:
            while not await self.look(watch):  # noqa: ASYNC110 - it is another process that ends it
                await asyncio.sleep(watch.pause_s())
        return self.info

    async def events(self, after: str | None = None) -> list[TuneEventInfo]:
        """List what the job has said, oldest first: all of it, or since the event `after`."""
        job = self.info.id
        return await all_pages(self._ask, lambda calls, limit, last: calls.events(job, limit, last), after=after)

    async def checkpoints(self) -> list[TuneCheckpointInfo]:
        """List the checkpoints that are kept, newest first."""
        job = self.info.id
        return await all_pages(self._ask, lambda calls, limit, last: calls.checkpoints(job, limit, last))


async def all_pages(
    ask: Ask,
    page: Callable[[TuneCalls, int, str | None], Awaitable[tuple[list[R], bool]]],
    limit: int | None = None,
    after: str | None = None,
) -> list[R]:
    """List all that there is of something, or the first `limit`."""
    found: list[R] = []
    more = True
    while more and (limit is None or len(found) < limit):
        wanted = PAGE if limit is None else min(PAGE, limit - len(found))
        last = found[-1].id if found else after
        some, more = await ask(lambda calls: page(calls, wanted, last))  # noqa: B023 - asked at once
        found += some
        more = more and bool(some)
    return found


def why_failed(info: TuneInfo) -> InvalidInput:
    """Make the error of a job that has failed."""
    error = info.error
    return InvalidInput(
        f"{info.id} failed: {error.message if error else 'its events say why'}", field=error.param if error else None
    )
