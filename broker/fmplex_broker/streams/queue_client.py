"""The client of the queues, for the gateway and for the SDK that speaks to Redis directly: submit, await, cancel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fmplex_broker.admission import requests as admission
from fmplex_broker.errors import BrokerUnavailable, Cancelled, DeadlineExceeded, InvalidInput
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.versions import stale_error
from fmplex_broker.streams.backbone_channel import BackboneChannel
from fmplex_broker.streams.connection import Client, Scripts, open_redis
from fmplex_broker.streams.not_taken import not_taken
from fmplex_broker.streams.producer import EnqueueResult, NewJob, StoredReply, new_id, stored_bytes
from fmplex_broker.streams.registry import Registry
from fmplex_broker.streams.stream_buffer import StreamBuffer
from fmplex_broker.streams.vfm_cache import VfmCache
from fmplex_broker.wire.messages import INTERACTIVE, Flow, Reply
from fmplex_broker.wire.streaming import Delta

T = TypeVar("T")
SPEC_TTL_S = 1.0  # how old a cached spec may be; caps, rates and removal are enforced by the script all the same
_TURN_S = 0.005  # so long the checks of a large call may take before others get a turn
_GRACE_S = 2.0  # beyond the deadline, for the worker's own answer to arrive


@dataclass(slots=True)
class Pending:
    """A submitted job. `result()` waits for its reply, `stream()` gives its text as it comes; `cancel()` takes it back if it has
    not run, and ends it if it runs."""

    job: str
    flow: Flow
    idem: str
    channel: BackboneChannel
    buffer: StreamBuffer | None  # its text, if the vFM generates
    future: asyncio.Future[Reply]
    until: float  # monotonic seconds

    async def stream(self) -> AsyncGenerator[Delta, None]:
        """Yield the text of a generating vFM, each character once: what comes while the job runs, if it was submitted with
        `stream`, and in the end whatever is missing. Then `result()` has the reply; if that is an error, the text just ends.

        Whoever stops half way cancels the job if nobody needs it; or asks again, and goes on from there. Raises `StreamRestarted`
        (`result()` has the whole text, for those who can replace what they have) and, as `result` does, `DeadlineExceeded` and
        `Cancelled`.
        """
        if self.buffer is None:
            raise InvalidInput(f"{self.flow.vfm!r} does not generate text; ask for its result")
        while (part := await self.buffer.next(self.future, self._left())) is not None:
            yield part
        if (rest := self.buffer.rest(await self.result())) is not None:
            yield rest

    async def result(self, timeout_s: float | None = None) -> Reply:
        """Wait for the reply (which may carry an error). Raises `DeadlineExceeded` when the job's own deadline passes unanswered,
        `TimeoutError` when only `timeout_s` does (the job goes on; ask again), and `Cancelled` after `cancel`."""
        try:
            return await self.reply(timeout_s)
        except DeadlineExceeded:
            with suppress(BrokerUnavailable):
                await self.cancel()
            raise

    async def reply(self, timeout_s: float | None = None) -> Reply:
        """Wait as `result` does, but leave it to the caller to cancel what was not answered in time."""
        left = self._left()
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
        """Cancel the job; nobody waits for it afterwards. Returns cancelled | told (it runs, its worker was told) | shared
        (others wait for it) | gone."""
        return (await _take_back([self]))[0]

    @property
    def stored(self) -> StoredReply:
        """Where its reply is stored once it has ended."""
        return StoredReply(self.channel.producer.keys.backbone, self.job, self.idem)

    def _left(self) -> float:
        return max(0.0, self.until + _GRACE_S - time.monotonic())


class QueueClient:
    """A client of the queues. One per process and event loop; close it when done. `spec_ttl_s`: how old a vFM's status may be."""

    def __init__(self, redis: Client, *, scripts: Scripts | None = None, spec_ttl_s: float = SPEC_TTL_S) -> None:
        self.redis = redis
        self.scripts = scripts or Scripts(redis)
        self.registry = Registry(redis, self.scripts)
        self._id = new_id()
        self._channels: dict[str, BackboneChannel] = {}
        self._vfms = VfmCache(self.registry, spec_ttl_s)

    @classmethod
    def connect(cls, url: str) -> QueueClient:
        """Return a client of the broker at `url`. It connects on first use."""
        return cls(open_redis(url))

    async def vfm(self, name: str) -> VfmStatus:
        """Return the vFM's status, at most `spec_ttl_s` old. Raises `UnknownVfm`."""
        return await self._vfms.get(name)

    def forget(self, name: str) -> None:
        """Drop what is cached of a vFM (it was changed through this client)."""
        self._vfms.forget(name)

    async def submit(
        self,
        vfm: str,
        inputs: Sequence[Any],
        params: dict[str, Any] | None = None,
        *,
        cls: str = INTERACTIVE,
        timeout_ms: float | None = None,
        idempotency_key: str | None = None,
        n: int = 1,
    ) -> list[Pending]:
        """Enqueue one job an input (`n` that stand next to each other), all or none. Raises what `admission.admit` raises,
        `TooLarge`, `UnknownVfm`, `VfmClosed`, `QueueFull`, `RateLimited`, `Conflict`, `BrokerUnavailable`."""
        admission.check_key(idempotency_key)
        status = await self.vfm(vfm)
        spec = status.spec
        call = new_id() if idempotency_key is None else idempotency_key
        payloads = await _in_turns(admission.admitting(spec, inputs, params, call=call, n=n))
        nbytes = stored_bytes([payload for payload, _ in payloads])
        admission.check_bytes(spec, nbytes)
        ms = admission.timeout_ms(spec, timeout_ms, cls)
        flow, until = Flow(vfm, cls), time.monotonic() + ms / 1000
        channel = self._channel(status.backbone)
        keys = [None if idempotency_key is None else f"{vfm}:{idempotency_key}:{i}" for i in range(len(payloads))]
        jobs = [
            NewJob(flow, *priced, ms, idempotency_key=key, charge=0) for priced, key in zip(payloads, keys, strict=True)
        ]
        jobs[0] = replace(jobs[0], charge=sum(units for _, units in payloads), call_bytes=nbytes)
        pending = [_pending(channel, job, until, isinstance(spec.head, Generation)) for job in jobs]
        try:
            try:
                got = await channel.enqueue(jobs)
            except BaseException:
                channel.abandon(jobs)
                raise
            return await self._accepted(flow, channel, pending, got)
        except BaseException:
            for p in pending:
                channel.inbox.forget(p.job, p.future)
            raise

    async def _accepted(
        self, flow: Flow, channel: BackboneChannel, pending: list[Pending], got: list[EnqueueResult]
    ) -> list[Pending]:
        refused = next((g for g in got if g.status not in ("new", "dup", "done")), None)
        if refused is not None:
            # `dup` with our own id: the first sending of a repeated call had arrived.
            mine = [p for p, g in zip(pending, got, strict=True) if g.status in ("new", "dup") and g.job == p.job]
            if mine:
                await channel.producer.cancel([(p.flow, p.job, p.idem) for p in mine])
            for p, g in zip(pending, got, strict=True):
                if g.status == "dup":  # whoever waits for that here goes on waiting
                    channel.inbox.note_attempt(g.job, p.job)
            if refused.status in ("closed", "stale", "unknown"):
                self.forget(flow.vfm)
            if refused.status == "stale":
                now = await self.registry.show(flow.vfm)
                if now.status == "stale":  # else it has been deployed again just now
                    raise stale_error(flow.vfm, now.version, now.hosted)
            raise not_taken(flow, refused)
        for p, g in zip(pending, got, strict=True):
            if g.job != p.job:  # an earlier job with this idempotency key answers
                channel.inbox.forget(p.job)
                attempt, p.job, p.future = p.job, g.job, channel.inbox.expect(g.job, p.buffer)
                channel.inbox.note_attempt(g.job, attempt)
        await channel.inbox.look_up([g.job for g in got if g.status == "done"])
        return pending

    async def forget_results(self, stored: Sequence[StoredReply]) -> None:
        """Delete stored replies before their time: whoever has written them down needs them no more, and a job that is asked for
        again runs again. Raises `BrokerUnavailable`."""
        for backbone in {reply.backbone for reply in stored}:
            await self._channel(backbone).producer.forget([reply for reply in stored if reply.backbone == backbone])

    def _channel(self, backbone: str) -> BackboneChannel:
        channel = self._channels.get(backbone)
        if channel is None:
            channel = self._channels[backbone] = BackboneChannel(self.redis, self.scripts, backbone, self._id)
        return channel

    async def close(self) -> None:
        """Close the inboxes, so that nobody waits any more, and the connections."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        await self.redis.aclose()


async def _in_turns(parts: Iterable[list[T]]) -> list[T]:
    """Join the parts of something that takes its time; whatever else runs on the event loop gets turns in between."""
    found: list[T] = []
    began = time.monotonic()
    for part in parts:
        found += part
        if time.monotonic() - began > _TURN_S:
            await asyncio.sleep(0)
            began = time.monotonic()
    return found


def _pending(channel: BackboneChannel, job: NewJob, until: float, generates: bool) -> Pending:
    buffer = StreamBuffer() if generates else None
    return Pending(job.job, job.flow, job.idem, channel, buffer, channel.inbox.expect(job.job, buffer), until)


async def gather_replies(pending: Sequence[Pending]) -> list[Reply]:
    """Wait for all replies; if the caller is cancelled (a client hung up) or one raises, cancel the jobs still open in one go."""
    try:
        return await asyncio.gather(*(p.reply() for p in pending))
    except BaseException:
        with suppress(BrokerUnavailable):  # the caller must see the first error
            await cancel_all(pending)
        raise


def raise_first_error(replies: Sequence[Reply]) -> None:
    """Raise the first error among the replies to one call. A worker knows of one input only: its `field` is completed here."""
    for i, reply in enumerate(replies):
        if reply.error is not None:
            root, dot, rest = (reply.error.field or "").partition(".")
            if root == "input":
                reply.error.field = f"inputs.{i}{dot}{rest}"
            raise reply.error


async def cancel_all(pending: Sequence[Pending]) -> None:
    """Cancel the jobs that have not been answered, many a round trip."""
    open_jobs = [p for p in pending if not p.future.done()]
    if open_jobs:
        await asyncio.shield(_take_back(open_jobs))


async def _take_back(pending: Sequence[Pending]) -> list[str]:
    """Cancel jobs of one channel; see `Pending.cancel`."""
    channel = pending[0].channel
    # Asked for before they are forgotten: who has asked last may have gone already.
    attempts = [channel.inbox.attempt(p.job) for p in pending]
    shared = [channel.inbox.forget(p.job, p.future) for p in pending]
    mine = [(p, attempt) for p, attempt, kept in zip(pending, attempts, shared, strict=True) if not kept]
    states = iter(await channel.producer.cancel([(p.flow, p.job, p.idem) for p, _ in mine], [a for _, a in mine]))
    return ["shared" if kept else next(states) for kept in shared]
