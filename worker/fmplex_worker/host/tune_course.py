"""One tuning job in hand, from its claim until it has ended or is given back."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from fmplex_broker.errors import BrokerUnavailable, Conflict, FmplexError, JobFailed, Unavailable
from fmplex_broker.specs.tune_records import Checkpoint, TuneError, TuneProgress
from fmplex_broker.specs.tuning import TuneFit
from fmplex_broker.streams.outages import Outage
from fmplex_broker.streams.tune_owner import HeldTune, Saved, TuneLost
from fmplex_worker.host.lease import LeaseLost
from fmplex_worker.host.training_job import TrainingJob
from fmplex_worker.host.tune_checkpoints import Checkpoints
from fmplex_worker.host.tune_desk import TuneDesk
from fmplex_worker.host.tune_ending import Ending
from fmplex_worker.host.tune_figures import Figures
from fmplex_worker.host.tune_opening import Opening
from fmplex_worker.host.tune_publishing import published_as

log = logging.getLogger(__name__)
Why: TypeAlias = Literal["", "pause", "cancel", "drain"]
T = TypeVar("T")
SAVE_S = 1.0
_AGAIN_S = 1.0
_UNFIT_S = 60.0  # for which no unit fits under any target, until the job fails
_FILES = {"data": "training_file", "validation": "validation_file"}  # as the reader of examples calls them


def _param(field: str | None) -> str | None:
    """Return the part of the order that an error's field is."""
    if field is not None and field.partition(".")[0] in TuneFit.model_fields:
        return f"fit.{field}"
    return _FILES.get(field or "", field)


class TuneCourse:
    """The course of one tuning job on this worker: opened, trained, published; saved every second meanwhile, when its owner's
    wishes are heard, too."""

    def __init__(self, held: HeldTune, desk: TuneDesk) -> None:
        self._held = held
        self._desk = desk
        self._figures = Figures()
        self._job: TrainingJob | None = None
        self._checkpoints: Checkpoints | None = None
        self._ending: Ending | None = None
        self._saving = asyncio.Lock()
        self._asked: Why = ""
        self._over = False
        self._outage = Outage(log, f"tuning job {held.id}")
        self._waited_for = ""
        self._unfit_since: float | None = None
        self._never_fits = False
        self._had_s = 0.0  # seconds of the device

    async def run(self) -> None:
        """Do what can be done of the job here. Raises nothing but cancellation."""
        try:
            with tempfile.TemporaryDirectory(prefix="fmplex-tune-") as folder:
                await self._work(Path(folder))
        except (TuneLost, LeaseLost):
            log.info("tuning job %s is in other hands", self._held.id)
        except Exception:
            log.exception("tuning job %s was dropped; another worker, or a later claim, goes on with it", self._held.id)
        if self._job is not None:
            await self._desk.turn.remove(self._job)
        self._desk.memory.release(self._held.id)

    async def _work(self, folder: Path) -> None:
        steps: tuple[Callable[[], Coroutine[Any, Any, None]], ...]
        steps = (partial(self._open, folder), self._train, self._end)
        try:
            for step in steps:
                why = await self._watched(step())
                if why and not self._over:
                    await self._give_back(why)
                    return
        except (TuneLost, LeaseLost):
            raise
        except FmplexError as e:
            await self._fail(e)
        except Exception as e:
            log.exception("tuning job %s", self._held.id)
            await self._fail(JobFailed(f"training ended with {type(e).__name__}; the worker's log says more"))

    # ---- steps ----

    async def _open(self, folder: Path) -> None:
        held, spec = self._held, self._held.record.spec
        opening = Opening(held, self._desk, folder)
        training = await self._patient(opening.open)
        await self._desk.memory.admit(spec.id, training, held.say)
        name = published_as(spec.publish, spec.id)
        self._job = job = TrainingJob(spec.id, name, spec.weight, training, alone=held.alone)
        self._checkpoints = Checkpoints(held, self._desk, job, opening.base)
        self._ending = Ending(held, self._desk, job, opening.base)

    async def _train(self) -> None:
        """Run the training to its end. Raises what ended it otherwise."""
        job, checkpoints = self._job, self._checkpoints
        assert job is not None
        assert checkpoints is not None
        async with self._desk.setting_up(job.id):
            await self._desk.turn.add(job)
        if job.progress is not None:
            self._figures.warnings(job.progress)  # that came with a checkpoint were told with it
        while True:
            await job.news.wait()
            job.news.clear()
            self._hear(job, checkpoints)
            if job.error is not None:
                raise job.error
            if job.ended:
                break
            if checkpoints.due:
                await self._keep(checkpoints.try_to_keep())
        await self._patient(lambda: self._keep(checkpoints.keep()))

    async def _end(self) -> None:
        """Publish what was learnt, and end the job, unless its owner has asked for something else."""
        ending = self._ending
        assert ending is not None
        await self._patient(
            lambda: self._save(self._desk.owner.save)
        )  # the fence: what comes is done by its owner alone
        if self._asked:
            return
        published = await self._patient(ending.publish)
        await self._patient(lambda: self._save(self._desk.owner.save))  # all events are there for the results
        files = await self._patient(ending.results)
        succeed = partial(self._desk.owner.finish, end="succeeded", published=published, result_files=files)
        await self._patient(lambda: self._save(lambda held, now: succeed(held, progress=now)))
        self._over = True

    async def _give_back(self, why: Why) -> None:
        """Keep what was learnt, and let go of the job."""
        job, checkpoints, owner = self._job, self._checkpoints, self._desk.owner
        if job is not None and checkpoints is not None:
            await self._desk.turn.remove(job)
            self._hear(job, checkpoints)
            await self._keep(checkpoints.try_to_keep())
        if why == "cancel":
            await self._patient(lambda: self._save(lambda held, now: owner.finish(held, "cancelled", progress=now)))
        else:
            await self._patient(lambda: self._save(owner.release))

    async def _fail(self, error: FmplexError) -> None:
        param = _param(error.field)
        code = f"invalid_{param}" if error.field in _FILES else error.code
        said = TuneError(code=code, message=error.message, param=param)
        try:
            if self._checkpoints is not None:
                await self._keep(self._checkpoints.try_to_keep())
        except Exception:  # whatever: the job has failed
            log.exception("the last state of tuning job %s is not kept", self._held.id)
        self._held.say(error.message, "error")
        owner = self._desk.owner
        await self._patient(
            lambda: self._save(lambda held, now: owner.finish(held, "failed", progress=now, error=said))
        )

    # ---- meanwhile ----

    async def _watched(self, step: Coroutine[Any, Any, None]) -> Why:
        """Do a step, and save meanwhile; return why it was not done to its end, if it was not."""
        doing, stop = asyncio.ensure_future(step), asyncio.ensure_future(self._desk.stop.wait())
        try:
            while True:
                both: set[asyncio.Future[Any]] = {doing, stop}
                await asyncio.wait(both, timeout=SAVE_S, return_when=asyncio.FIRST_COMPLETED)
                if doing.done():
                    doing.result()
                    return self._asked
                if stop.done():
                    return "drain"
                try:
                    await self._save(self._desk.owner.save)
                    self._outage.over()
                except BrokerUnavailable as e:
                    self._outage.say(e)
                if self._asked:
                    return self._asked
                self._check_fit()
        finally:
            doing.cancel()
            stop.cancel()
            await asyncio.gather(doing, stop, return_exceptions=True)

    async def _save(self, call: Callable[[HeldTune, TuneProgress | None], Awaitable[Saved]]) -> None:
        """Tell the broker how far it is, and hear what is asked."""
        job = self._job
        now = None if job is None or job.progress is None else self._figures.note(job.progress, job.seconds)
        async with self._saving:
            saved = await call(self._held, now)
        self._asked = saved.asked
        if saved.dropped:
            try:
                await self._desk.off_loop(self._desk.shelf.drop, self._held.id, saved.dropped)
            except FmplexError as e:
                log.warning("checkpoints of %s that are not kept any more stay in the store: %s", self._held.id, e)

    async def _keep(self, checkpoints: AsyncIterator[Checkpoint]) -> None:
        async for checkpoint in checkpoints:
            async with self._saving:
                self._held.keep(checkpoint)

    def _hear(self, job: TrainingJob, checkpoints: Checkpoints) -> None:
        """Say what is new of a training."""
        run = checkpoints.take() or job.progress
        if run is None:
            return
        for warning in self._figures.warnings(run):
            self._held.say(warning, "warn")
        if (said := self._figures.news(run, self._figures.note(run, job.seconds))) is not None:
            self._held.say(said[0], data=said[1])

    def _check_fit(self) -> None:
        """Say that no unit fits, and raise `Conflict` if that has been so for long and less traffic would change nothing."""
        job, unfit = self._job, self._desk.turn.unfit()
        if job is None or job.seconds > self._had_s:
            self._unfit_since = None
            self._had_s = 0.0 if job is None else job.seconds
        elif unfit is not None and unfit.job is job:
            now, never = time.monotonic(), unfit.takes > unfit.most
            lent = (
                f"{1000 * unfit.most:.0f} ms at most"
                if never
                else f"{1000 * unfit.lent:.0f} ms as long as they are so busy"
            )
            words = (
                f"a unit of this training takes {1000 * unfit.takes:.0f} ms, and under the targets of the vFMs beside it the "
                f"device can be lent for {lent}; raise these targets or worker.tuning.spend, or train shorter texts"
            )
            if self._unfit_since is None or never is not self._never_fits:
                self._unfit_since, self._never_fits = now, never
                self._held.say(words, "warn")
            elif never and now - self._unfit_since > _UNFIT_S:
                raise Conflict(words, field="worker.tuning.spend")

    async def _patient(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until whatever is away is there again: that fails no job. What it waits for is said once."""
        while True:
            try:
                return await call()
            except Unavailable as e:
                self._outage.say(e)
                if e.message != self._waited_for:
                    self._waited_for = e.message
                    self._held.say(f"Waiting: {e.message}", "warn")
            await asyncio.sleep(_AGAIN_S)
