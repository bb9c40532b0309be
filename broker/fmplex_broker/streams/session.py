"""What a client of the queues needs, whether it is the gateway or the SDK speaking to Redis directly: submit, await, cancel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fmplex_broker import admission
from fmplex_broker.deployments import VfmStatus
from fmplex_broker.errors import (
    BrokerUnavailable,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    FmplexError,
    QueueFull,
    RateLimited,
    UnknownVfm,
    VfmClosed,
)
from fmplex_broker.messages import INTERACTIVE, Flow, Reply
from fmplex_broker.streams.connection import Client, Scripts, open_redis
from fmplex_broker.streams.inbox import Inbox
from fmplex_broker.streams.producer import PER_CALL, Enqueued, NewJob, Producer, new_id
from fmplex_broker.streams.registry import Registry

SPEC_TTL_S = 1.0  # how old a cached spec may be; caps, rates and removal are enforced by the script all the same
_GRACE_S = 2.0  # beyond the deadline, for the worker's own answer to arrive


@dataclass(slots=True)
class Pending:
    """A submitted job. `result()` waits for its reply; `cancel()` takes it back if it has not run."""

    job: str
    flow: Flow
    idem: str
    lane: _Lane
    future: asyncio.Future[Reply]
    until: float  # monotonic seconds

    async def result(self, timeout_s: float | None = None) -> Reply:
        """The reply (which may carry an error). Raises `DeadlineExceeded` when the job's own deadline passes unanswered,
        `TimeoutError` when only `timeout_s` does (the job goes on; ask again), and `Cancelled` after `cancel`."""
        try:
            return await self.reply(timeout_s)
        except DeadlineExceeded:
            with suppress(BrokerUnavailable):
                await self.cancel()
            raise

    async def reply(self, timeout_s: float | None = None) -> Reply:
        """As `result`, but leaves it to the caller to cancel what was not answered in time."""
        left = max(0.0, self.until + _GRACE_S - time.monotonic())
        wait = left if timeout_s is None else min(left, timeout_s)
        done, _ = await asyncio.wait([self.future], timeout=wait)
        if self.future.cancelled():
            raise Cancelled("nobody waits for this job any more: it was cancelled here, or the session was closed")
        if done:
            return self.future.result()
        if timeout_s is not None and timeout_s < left:
            raise TimeoutError(f"job {self.job} has not ended within {timeout_s} s; it goes on")
        raise DeadlineExceeded("no answer before the deadline; the fleet is overloaded, or no worker is alive")

    async def cancel(self) -> str:
        """cancelled | told (it runs, its worker was told) | shared | gone. Nobody waits for it afterwards."""
        if self.lane.inbox.forget(self.job, self.future):
            return "shared"
        return (await self.lane.producer.cancel([(self.flow, self.job, self.idem)]))[0]


class _Lane:
    """One backbone: its producer, inbox, and the batch of enqueues that gathers while one is under way."""

    def __init__(self, redis: Client, scripts: Scripts, backbone: str, client: str) -> None:
        self.producer = Producer(redis, scripts, backbone, client)
        self.inbox = Inbox(redis, backbone, client, self.producer.results)
        self._gathered: list[tuple[NewJob, asyncio.Future[Enqueued]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._cleaners: set[asyncio.Task[None]] = set()

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Enqueued]] = [loop.create_future() for _ in jobs]
        self._gathered += zip(jobs, futures, strict=True)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return await asyncio.gather(*futures)

    async def _flush(self) -> None:
        while self._gathered:
            batch, self._gathered = self._gathered[:PER_CALL], self._gathered[PER_CALL:]
            batch = [(job, future) for job, future in batch if not future.done()]  # done: its caller has gone
            try:
                for (_, future), got in zip(batch, await self._send([j for j, _ in batch]), strict=True):
                    if not future.done():
                        future.set_result(got)
            except Exception as e:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(e)

    async def _send(self, jobs: list[NewJob]) -> list[Enqueued]:
        try:
            return await self.producer.enqueue(jobs)
        except BrokerUnavailable:
            # The idempotency keys make a second send safe, whether or not the first one arrived.
            await asyncio.sleep(0.1)
            return await self.producer.enqueue(jobs)

    def abandon(self, jobs: Sequence[NewJob]) -> None:
        """The caller of `enqueue` has gone or was told of a failure: take back what was queued, or is just being queued."""
        cleaner = asyncio.create_task(self._take_back(jobs))
        self._cleaners.add(cleaner)
        cleaner.add_done_callback(self._cleaners.discard)

    async def _take_back(self, jobs: Sequence[NewJob]) -> None:
        if self._flusher is not None:
            await asyncio.wait([self._flusher])
        with suppress(BrokerUnavailable):
            await self.producer.cancel([(j.flow, j.job, j.idem) for j in jobs])

    async def close(self) -> None:
        ending = [*self._cleaners, *([self._flusher] if self._flusher else [])]
        await asyncio.gather(*ending, return_exceptions=True)
        await self.inbox.close()


class Session:
    """A client of the queues. One per process and event loop; close it when done."""

    def __init__(self, redis: Client, *, scripts: Scripts | None = None, spec_ttl_s: float = SPEC_TTL_S) -> None:
        self.redis = redis
        self.scripts = scripts or Scripts(redis)
        self.registry = Registry(redis, self.scripts)
        self._id = new_id()
        self._lanes: dict[str, _Lane] = {}
        self._specs: dict[str, tuple[VfmStatus, float]] = {}
        self._looks: dict[str, asyncio.Task[VfmStatus]] = {}
        self._spec_ttl_s = spec_ttl_s

    @classmethod
    def connect(cls, url: str) -> Session:
        return cls(open_redis(url))

    async def vfm(self, name: str) -> VfmStatus:
        """The vFM's status, at most `spec_ttl_s` old. Raises `UnknownVfm`."""
        cached = self._specs.get(name)
        if cached is not None and time.monotonic() - cached[1] < self._spec_ttl_s:
            return cached[0]
        look = self._looks.get(name)
        if look is None:  # one look for all who ask at the same time
            look = self._looks[name] = asyncio.create_task(self._look(name))
            look.add_done_callback(lambda t: t.cancelled() or t.exception())  # those who asked may have gone
        return await asyncio.shield(look)

    async def _look(self, name: str) -> VfmStatus:
        try:
            status = await self.registry.show(name)
        except UnknownVfm:
            self._specs.pop(name, None)
            raise
        finally:
            del self._looks[name]
        self._specs[name] = (status, time.monotonic())
        return status

    def forget(self, name: str) -> None:
        """Drop what is cached of a vFM (it was changed through this session)."""
        self._specs.pop(name, None)

    async def submit(
        self,
        vfm: str,
        inputs: Sequence[Any],
        params: dict[str, Any] | None = None,
        *,
        cls: str = INTERACTIVE,
        timeout_ms: float | None = None,
        idempotency_key: str | None = None,
    ) -> list[Pending]:
        """Enqueue one job an input, all or none. Raises what `admission.admit` raises, `UnknownVfm`, `VfmClosed`, `QueueFull`,
        `RateLimited`, `Conflict`, `BrokerUnavailable`."""
        status = await self.vfm(vfm)
        spec = status.spec
        payloads = admission.admit(spec, inputs, params)
        ms = admission.timeout_ms(spec.slo, timeout_ms)
        flow, until = Flow(vfm, cls), time.monotonic() + ms / 1000
        lane = self._lane(status.backbone)
        jobs = []
        for i, (payload, units) in enumerate(payloads):
            key = None if idempotency_key is None else f"{vfm}:{idempotency_key}:{i}"
            charge = 0 if i else sum(units for _, units in payloads)
            jobs.append(NewJob(flow, payload, units, ms, idempotency_key=key, charge=charge))
        pending = [Pending(j.job, flow, j.idem, lane, lane.inbox.expect(j.job), until) for j in jobs]
        try:
            try:
                got = await lane.enqueue(jobs)
            except BaseException:
                lane.abandon(jobs)
                raise
            return await self._accepted(vfm, lane, pending, got)
        except BaseException:
            for p in pending:
                lane.inbox.forget(p.job, p.future)
            raise

    async def _accepted(self, vfm: str, lane: _Lane, pending: list[Pending], got: list[Enqueued]) -> list[Pending]:
        refused = next((g for g in got if g.status not in ("new", "dup", "done")), None)
        if refused is not None:
            # `dup` with our own id: the first sending of a repeated call had arrived.
            mine = [p for p, g in zip(pending, got, strict=True) if g.status in ("new", "dup") and g.job == p.job]
            if mine:
                await lane.producer.cancel([(p.flow, p.job, p.idem) for p in mine])
            if refused.status in ("closed", "unknown"):
                self.forget(vfm)
            raise _refusal(vfm, refused)
        for p, g in zip(pending, got, strict=True):
            if g.job != p.job:  # an earlier job with this idempotency key answers
                lane.inbox.forget(p.job)
                p.job, p.future = g.job, lane.inbox.expect(g.job)
        await lane.inbox.look_up([g.job for g in got if g.status == "done"])
        return pending

    def _lane(self, backbone: str) -> _Lane:
        lane = self._lanes.get(backbone)
        if lane is None:
            lane = self._lanes[backbone] = _Lane(self.redis, self.scripts, backbone, self._id)
        return lane

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.close()
        self._lanes.clear()
        await self.redis.aclose()


def _refusal(vfm: str, got: Enqueued) -> FmplexError:
    match got.status:
        case "full":
            return QueueFull(f"the queue of {vfm!r} is full; come back later", retry_after=1.0)
        case "limited":
            return RateLimited(f"{vfm!r} is over its rate; come back later", retry_after=max(got.wait_ms, 1) / 1000)
        case "closed":
            return VfmClosed(f"vFM {vfm!r} is not serving")
        case "conflict":
            return Conflict("this idempotency key was used for another request", field="idempotency_key")
        case _:
            return UnknownVfm(f"there is no vFM {vfm!r}; `fmplex vfms` lists them")


async def gather_replies(pending: Sequence[Pending]) -> list[Reply]:
    """Wait for all; if the caller is cancelled (a client hung up) or one raises, what is still waiting is cancelled in one go."""
    try:
        return await asyncio.gather(*(p.reply() for p in pending))
    except BaseException:
        with suppress(BrokerUnavailable):  # what went wrong first is what the caller must hear of
            await cancel_all(pending)
        raise


def raise_first_error(replies: Sequence[Reply]) -> None:
    """Raise the first error among the replies to one call. A worker knows of one input only: which one it was is said here."""
    for i, reply in enumerate(replies):
        if reply.error is not None:
            root, dot, rest = (reply.error.field or "").partition(".")
            if root == "input":
                reply.error.field = f"inputs.{i}{dot}{rest}"
            raise reply.error


async def cancel_all(pending: Sequence[Pending]) -> None:
    """Cancel what has not been answered, many a round trip."""
    open_jobs = [p for p in pending if not p.future.done()]
    if open_jobs:
        lane = open_jobs[0].lane
        mine = [p for p in open_jobs if not lane.inbox.forget(p.job, p.future)]
        await asyncio.shield(lane.producer.cancel([(p.flow, p.job, p.idem) for p in mine]))
