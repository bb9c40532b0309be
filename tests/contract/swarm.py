"""Who takes part in the attack: workers that follow the Habits of BROKER.md, and clients that send, repeat and cancel."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fmplex_broker.errors import BrokerUnavailable, Cancelled, DeadlineExceeded, FmplexError
from fmplex_broker.streams.claims import Claimed, Order
from fmplex_broker.streams.connection import Arg, Scripts, open_redis
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.producer import NewJob, Producer, new_id
from fmplex_broker.wire.messages import (
    CLASSES,
    INTERACTIVE,
    OFFLINE,
    Flow,
    Part,
    Reply,
    SharedPayload,
    encode_reply,
    split,
)
from tests.contract.harness import BACKBONE
from tests.support.hosting import HOSTED

LEASE_MS = 250
MAX_ATTEMPTS = 5
POISON = b"poison"
_PARTS = [Part.of("params", {"n": n, "filler": "y" * 3_000}) for n in range(4)]
_IDLE_S = 0.5  # ceiling of an idle worker's sleep


class Died(Exception):
    """The process is gone, with all it held."""


class Lost(Exception):
    """Somebody has taken over: begin a new life under a new id."""


class Pausable(Scripts):
    """The scripts as a process sees them that can be paused at any call."""

    def __init__(self, redis: Any, running: asyncio.Event) -> None:
        super().__init__(redis)
        self._running = running

    async def __call__(self, name: str, vfms_key: str, args: Sequence[Arg], **more: Any) -> Any:
        await self._running.wait()
        return await super().__call__(name, vfms_key, args, **more)


class Worker:
    """One worker process after another: each life has a new id, and ends in `Died` or `Lost`. `shy`: vFMs that it avoids now and
    then; `talkative`: it tells of some jobs while they run."""

    def __init__(
        self,
        name: str,
        url: str,
        rng: random.Random,
        room: int = 12,
        orders: Sequence[Order] = ("fair",),
        *,
        shy: Sequence[str] = (),
        talkative: bool = False,
    ) -> None:
        self.name = name
        self.served = 0
        self.lives = 0
        self.shift: asyncio.Task[None] | None = None
        self.running = asyncio.Event()
        self.running.set()
        self._url = url
        self._rng = rng
        self._room = room
        self._orders = orders
        self._shy = shy
        self._talkative = talkative

    async def run(self) -> None:
        while True:
            self.lives += 1
            redis = open_redis(self._url)
            try:
                await self._live(redis)
            except* (Died, Lost):
                await asyncio.sleep(0.02)
            finally:
                await redis.aclose()

    async def _live(self, redis: Any) -> None:
        scripts = Pausable(redis, self.running)
        self.consumer = Consumer(redis, scripts, BACKBONE, f"{self.name}-{new_id()}", lease_ms=LEASE_MS)
        self.todo: list[Claimed] = []  # claimed and not begun: all that a recovery must know of
        self.cancelled: set[str] = set()
        self.rung = asyncio.Event()
        self.now_ms = 0
        async with asyncio.TaskGroup() as life:
            try:
                if not (await self.consumer.join(HOSTED)).alive:
                    raise Lost
            except BrokerUnavailable:
                raise Lost from None  # whether or not it has arrived: ids are never used twice
            for task in (self._heart(), self._ear(), self._hands()):
                life.create_task(task)

    # --- heart: beat, and take over from the dead ---

    async def _heart(self) -> None:
        steady = last = time.monotonic()
        while True:
            with suppress(BrokerUnavailable):
                beat = await self.consumer.beat()
                if not beat.alive:
                    raise Lost
                now = time.monotonic()
                if now - last > LEASE_MS / 1000:
                    steady = now  # a gap: others may only look dead because the server was away
                last, self.now_ms = now, beat.now_ms
                await self._reap(int((now - steady) * 1000))
            await asyncio.sleep(LEASE_MS / 3000)

    async def _reap(self, steady_ms: int) -> None:
        while (await self.consumer.reap(steady_ms, max_attempts=MAX_ATTEMPTS, budget=8)).state == "ok":
            pass

    # --- ear: one permanent task reads `wake` and `control` ---

    async def _ear(self) -> None:
        while True:
            try:
                words = await self.consumer.listen()
            except BrokerUnavailable:
                await asyncio.sleep(0.02)
                continue
            self.cancelled.update(words.cancelled)
            if words.woken:
                self.rung.set()

    # --- hands: claim, run, settle; after any failure or cancellation, recover ---

    async def _hands(self) -> None:
        while True:
            self.shift = asyncio.create_task(self._work())
            try:
                await asyncio.wait([self.shift])
            finally:
                self.shift.cancel()
            if not self.shift.cancelled() and isinstance(e := self.shift.exception(), Died | Lost | AssertionError):
                raise e
            await self._recover()

    async def _recover(self) -> None:
        while True:
            with suppress(BrokerUnavailable):
                if not await self.consumer.recover(self.todo):
                    raise Lost
                return
            await asyncio.sleep(0.02)

    async def _work(self) -> None:
        while True:
            if not self.todo:
                self.rung.clear()  # before claiming: what rings from now on is not lost
                order = self._rng.choice(self._orders)
                avoid = [Flow(vfm, cls) for vfm in self._shy for cls in CLASSES if self._rng.random() < 0.2]
                claim = await self.consumer.claim({INTERACTIVE: self._room, OFFLINE: 2}, order=order, avoid=avoid)
                if any(j.flow in avoid for j in claim.jobs):
                    raise AssertionError("claimed what was to be avoided")
                if claim.state == "lost":
                    raise Lost
                if claim.state == "stale":
                    return
                self.todo = claim.jobs
                if not claim.jobs and not claim.more:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self.rung.wait(), _IDLE_S)
            elif self._rng.random() < 0.05:
                given, self.todo = self.todo, []  # forgotten first
                await self.consumer.release(given)
            else:
                await self._run(self._next_pass())

    def _next_pass(self) -> list[Claimed]:
        if self.todo[0].attempts > 1:
            return [self.todo.pop(0)]  # it may have killed its last worker: alone
        together = [j for j in self.todo[:8] if j.attempts == 1]
        self.todo = [j for j in self.todo if j not in together]
        return together

    async def _run(self, jobs: list[Claimed]) -> None:
        if not await self.consumer.mark(jobs):
            raise Lost
        if self._talkative and self._rng.random() < 0.2:
            await self._tell(jobs)
        await asyncio.sleep(self._rng.uniform(0.001, 0.01))
        if any(j.payload == POISON for j in jobs):
            raise Died
        replies = [(j, encode_reply(self._answer(j))) for j in jobs]
        while True:
            with suppress(BrokerUnavailable):
                settled = await self.consumer.settle(replies)  # safe to repeat
                self.served += sum(settled)
                return
            await asyncio.sleep(0.02)

    async def _tell(self, jobs: list[Claimed]) -> None:
        for _ in range(2):
            with suppress(BrokerUnavailable):  # never repeated
                await self.consumer.send_chunks([(j, b"a chunk") for j in jobs])

    def _answer(self, job: Claimed) -> Reply:
        error: FmplexError | None = None
        if f"{job.address} {job.entry}" in self.cancelled:
            error = Cancelled("cancelled while it ran")
        elif self.now_ms > job.deadline_ms:
            error = DeadlineExceeded("too late")
        return Reply(output=split(job.payload)[0], error=error, worker=self.consumer.worker)


@dataclass
class Accounts:
    """What the broker has accepted: job -> inboxes that were promised a message (none for whoever came when it was done)."""

    promised: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    sent: list[NewJob] = field(default_factory=list)
    poison: set[str] = field(default_factory=set)

    def took(self, job: str, status: str, inbox: str) -> None:
        self.promised[job] |= {inbox} if status in ("new", "dup") else set()


class Client:
    """Sends jobs until it is stopped: one in ten again under the same key, some with short deadlines, some cancelled."""

    def __init__(self, inbox: str, url: str, vfms: Sequence[str], ledger: Accounts, rng: random.Random) -> None:
        self._inbox = inbox
        self._url = url
        self._vfms = vfms
        self._ledger = ledger
        self._rng = rng
        self.stopped = False

    async def run(self) -> None:
        redis = open_redis(self._url)
        producer = Producer(redis, Scripts(redis), BACKBONE, self._inbox)
        while not self.stopped:
            jobs = [self._job() for _ in range(self._rng.randint(1, 6))]
            await self._send(producer, jobs)
            if self._rng.random() < 0.2:
                unlucky = self._rng.choice(jobs)
                with suppress(BrokerUnavailable):
                    await producer.cancel([(unlucky.flow, unlucky.job, unlucky.idem)])
            await asyncio.sleep(self._rng.uniform(0, 0.03))
        await redis.aclose()

    def _job(self) -> NewJob:
        if self._ledger.sent and self._rng.random() < 0.1:
            first = self._rng.choice(self._ledger.sent)  # by whomever: the key is what counts
            return NewJob(first.flow, first.payload, first.units, first.timeout_ms, idempotency_key=first.idem)
        flow = Flow(self._rng.choice(self._vfms), OFFLINE if self._rng.random() < 0.15 else INTERACTIVE)
        units, deadline = self._rng.randint(1, 20), self._rng.choice([40, 60_000, 60_000])
        own = b"x" * self._rng.choice([10, 10, 10, 70_000])
        shared = tuple(self._rng.sample(_PARTS, self._rng.choice([0, 0, 1, 2])))
        payload = SharedPayload(own, shared) if shared else own
        return NewJob(flow, payload, units, deadline, idempotency_key=new_id())

    async def _send(self, producer: Producer, jobs: list[NewJob]) -> None:
        while True:  # the keys make it safe to repeat
            with suppress(BrokerUnavailable):
                got = await producer.enqueue(jobs)
                break
            await asyncio.sleep(0.02)
        for sent, taken in zip(jobs, got, strict=True):
            assert taken.status in ("new", "dup", "done", "full"), taken
            if taken.status == "full":
                continue
            self._ledger.sent.append(sent)
            self._ledger.took(taken.job, taken.status, self._inbox)
