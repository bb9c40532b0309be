"""The feeder of a gateway: takes open batches that nobody feeds, keeps their leases, and leads each to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from fmplex_broker.errors import BrokerUnavailable, FmplexError
from fmplex_broker.packages.files import FileStore
from fmplex_broker.streams.batch_list import BatchList, Held, Lost
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.outages import Outage
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.batches.course import Course
from fmplex_gateway.batches.desk import Desk
from fmplex_gateway.batches.patience import GivenBack
from fmplex_gateway.ending import end

log = logging.getLogger(__name__)
_EVERY_S = 1.0
_AT_ONCE, _SOON_S = 16, 0.1  # batches that are taken at once, and when the next: several gateways share what is there
_MOST = 256
_STILL_S = 300.0  # a batch of which no line was answered for so long makes room for those that wait, if there is none
_CLOSE_S = 8.0


class Feeder:
    """Feeds batches, from `start` to `close`."""

    def __init__(self, queue: QueueClient, batches: BatchList, files: FileList, store: FileStore) -> None:
        self._desk = Desk(queue, batches, files, store)
        self._courses: dict[str, tuple[Course, asyncio.Task[None]]] = {}
        self._closed: list[Course] = []
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take batches."""
        self._task = asyncio.create_task(self._run())

    @property
    def lines(self) -> Mapping[str, int]:
        """How many lines were recorded here, by outcome."""
        return self._desk.lines

    def wake(self) -> None:
        """Look at once: a batch was ordered, or cancelled."""
        self._woken.set()

    async def close(self) -> None:
        """Record what is answered and give all batches back; what is with workers stays there, for whoever takes them over."""
        if self._task is not None:
            await end([self._task])
        tasks = [task for _, task in self._courses.values()]
        self._closed = [course for course, _ in self._courses.values()]
        held = {course.batch: course.holder for course in self._closed}
        for course in self._closed:
            course.close()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
            await end(tasks)
        with suppress(FmplexError):
            await self._desk.batches.give_back(held)

    async def drop(self) -> None:
        """Let nothing of it wait any more, once the queue is closed."""
        for course in self._closed:
            await course.drop()
        self._desk.disk.close()

    # --- inner ---

    async def _run(self) -> None:
        outage = Outage(log, "feeding batches")
        while True:
            pause_s = _EVERY_S
            try:
                await self._renew()
                pause_s = _SOON_S if await self._take() else _EVERY_S
                outage.over()
            except FmplexError as e:
                if type(e) is not BrokerUnavailable:  # that the broker is away is said by who watches it
                    outage.say(e)
            except Exception:  # whatever it was, batches must be fed
                log.exception("looking for batches failed; trying again")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
            self._woken.clear()

    async def _take(self) -> bool:
        """Take batches; return whether there may be more that this gateway has room for."""
        room = min(_AT_ONCE, _MOST - len(self._courses))
        if room <= 0:
            await self._make_room()
            return False
        taken = await self._desk.batches.take(room)
        for held in taken:
            self._begin(held)
        return len(taken) == _AT_ONCE

    async def _make_room(self) -> None:
        """Let batches that stand still take turns with those that wait: what these are for may well be there."""
        still = [course for course, _ in self._courses.values() if course.still_s > _STILL_S]
        waiting = await self._desk.batches.count_waiting(self._desk.clock.now()) if still else 0
        for course in sorted(still, key=lambda course: -course.still_s)[: min(waiting, _AT_ONCE)]:
            course.close()

    async def _renew(self) -> None:
        now, leases = await self._desk.batches.renew({b: course.holder for b, (course, _) in self._courses.items()})
        self._desk.clock.set(now)
        for batch, lease in leases.items():
            if batch in self._courses:
                self._courses[batch][0].tell(lease)

    def _begin(self, held: Held) -> None:
        course = Course(self._desk, held)
        before = self._courses.get(course.batch)
        if before is not None:  # the lease had run out, and nobody else came
            before[1].cancel()
        self._courses[course.batch] = course, asyncio.create_task(self._lead(course))
        self._desk.room.batches = len(self._courses)

    async def _lead(self, course: Course) -> None:
        try:
            await course.run()
        except Lost:
            log.info("batch %s is not held here any more", course.batch)
            with suppress(FmplexError):  # unless it is: then the broker has forgotten something, and it is read anew
                await self._desk.batches.give_back({course.batch: course.holder})
        except GivenBack:
            log.info("batch %s is given back", course.batch)
            if course not in self._closed:  # it has made room for another
                await course.drop()
                with suppress(FmplexError):
                    await self._desk.batches.give_back({course.batch: course.holder}, last=True)
        except Exception:  # its lease runs out, and somebody tries again
            log.exception("batch %s failed here", course.batch)
        finally:
            now = self._courses.get(course.batch)
            if now is not None and now[0] is course:
                del self._courses[course.batch]
            self._desk.room.batches = len(self._courses)
