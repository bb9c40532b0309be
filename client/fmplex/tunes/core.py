"""What both kinds of tuning jobs do, on an event loop."""

from __future__ import annotations

from datetime import datetime

from fmplex.following import Followed, Waiting, all_pages
from fmplex.tunes.calls import TuneCalls
from fmplex.tunes.records import TuneCheckpointInfo, TuneEventInfo, TuneInfo
from fmplex_broker.errors import InvalidInput


class TuneWatch(Waiting[TuneInfo]):
    """Watches one tuning job: its step, losses, tokens a second and share of the device."""

    def show(self, info: TuneInfo) -> None:
        """Bring the bar to what is known."""
        progress = info.progress
        self._bar.update(
            self._task, description=info.status, total=progress.steps or None, completed=progress.step, rate=now_of(info),
            failed="" if info.error is None else info.error.code,
        )  # fmt: skip


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


class TuneCore(Followed[TuneCalls, TuneInfo]):
    """One tuning job."""

    watch = TuneWatch

    async def wish(self, what: str) -> TuneInfo:
        """Cancel, pause or resume the job. Raises `Conflict` in a state in which that cannot be."""
        self.info = await self._ask(lambda calls: calls.ask(self.info.id, what))
        return self.info

    async def events(self, after: str | None = None) -> list[TuneEventInfo]:
        """List what the job has said, oldest first: all of it, or since the event `after`."""
        job = self.info.id
        return await all_pages(self._ask, lambda calls, limit, last: calls.events(job, limit, last), after=after)

    async def checkpoints(self) -> list[TuneCheckpointInfo]:
        """List the checkpoints that are kept, newest first."""
        job = self.info.id
        return await all_pages(self._ask, lambda calls, limit, last: calls.checkpoints(job, limit, last))


def why_failed(info: TuneInfo) -> InvalidInput:
    """Make the error of a job that has failed."""
    error = info.error
    return InvalidInput(
        f"{info.id} failed: {error.message if error else 'its events say why'}", field=error.param if error else None
    )
