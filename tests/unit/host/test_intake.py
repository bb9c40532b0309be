"""Jobs whose version is not here wait beside the window, and come in in order."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fmplex_broker.errors import Cancelled, FmplexError, PackageRejected, StaleVersion
from fmplex_broker.specs.versions import version_of
from fmplex_broker.streams.claims import Claim, Claimed, Order, Terms
from fmplex_broker.wire.messages import INTERACTIVE, Flow, Request, encode_request
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.claim_pacing import ClaimPacer
from fmplex_worker.host.claim_room import ClaimRoom
from fmplex_worker.host.claiming import Claimer
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.intake import Intake
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.passes import PassProgress
from fmplex_worker.host.preparation import Preparation
from fmplex_worker.host.version_loads import VersionLoads
from fmplex_worker.scheduling import CostModel, KvAdmission, PassBudget, TargetBook
from tests.support.hosting import HOSTED, OTHER, on_hosted
from tests.support.waiting import until_soon
from tests.unit.host.tables import Encode, FakeOutbox
from tests.unit.residency.fakes import Inline, residents


def claimed(n: int, version: str, vfm: str = "a") -> Claimed:
    payload = encode_request(Request(f"text {n}", {}))
    return Claimed(Flow(vfm, INTERACTIVE), f"{n}-0", f"{n}", "in", version, 10, 10_000, payload, 1)


class Clock:
    def now_ms(self) -> float:
        return 0.0


class FakeScheduler:
    def __init__(self) -> None:
        self.entered: list[int] = []
        self.weights: dict[str, float] = {}

    def add(self, item: Any) -> None:
        self.entered.append(int(item.key.split(" ")[1].split("-")[0]))

    def remove(self, key: str) -> None:
        """It does not run what enters."""

    def set_weight(self, vfm: str, weight: float) -> None:
        self.weights[vfm] = weight


class FakeConsumer:
    """Gives what the test puts into `batches`, and keeps how it was asked. `marks`: what it was told of besides claims."""

    worker = "w"

    def __init__(self) -> None:
        self.marks: list[list[str]] = []
        self.loads: list[tuple[str, str]] = []
        self.avoided: list[set[Flow]] = []
        self.batches: list[list[Claimed]] = []
        self.strangers: list[bool] = []
        self.orders: set[Order] = set()

    async def claim(
        self,
        room: dict[str, int],
        *,
        order: Order,
        steal_ms: int,
        strangers: bool,
        avoid: Collection[Flow],
        preparing: Iterable[Claimed],
    ) -> Claim:
        self.avoided.append(set(avoid))
        self.strangers.append(strangers)
        self.orders.add(order)
        jobs = self.batches.pop(0) if self.batches else []
        return Claim("ok", jobs, False, {}, {j.flow.vfm: Terms(2.0) for j in jobs}, 0)

    async def mark(self, jobs: Iterable[Claimed], *, preparing: bool, tuning: str = "") -> bool:
        self.marks.append([job.job for job in jobs])
        return True

    async def loading(self, vfm: str, version: str, does: str, others: Iterable[tuple[str, str]]) -> tuple[int, str]:
        self.loads.append((vfm, version))
        return 0, ""


class Bench:
    def __init__(self) -> None:
        self.residents, engine, self.fetcher = residents(4)
        self.scheduler, self.consumer = FakeScheduler(), FakeConsumer()
        passes = PassProgress()
        self.table = JobTable(ClaimRoom(100_000, 1, passes), self.residents.pin, self.residents.unpin)
        self.outbox = FakeOutbox()

        def prepare(batch: Sequence[tuple[str, Request]]) -> list[Encode | FmplexError]:
            assert all(self.residents._lru.pinned(digest) for digest, _ in batch)
            return [Encode(10, digest) for digest, _ in batch]

        engine.prepare = prepare  # type: ignore[attr-defined]
        engine.quick = lambda digest, request: True  # type: ignore[attr-defined]
        self.dispatcher = Dispatcher(
            engine,
            self.scheduler,
            self.table,
            KvAdmission(0, {}),
            self.outbox,  # type: ignore[arg-type]
        )
        targets = TargetBook(PassBudget(CostModel(1000), 1000))
        blame = Blame(self.consumer)  # type: ignore[arg-type]
        claimer = Claimer(self.consumer, self.table, self.scheduler, targets, 50, "arrival", blame)  # type: ignore[arg-type]
        preparation = Preparation(engine, self.dispatcher, Clock(), Inline(), blame, asyncio.TaskGroup())  # type: ignore[arg-type]
        loads = VersionLoads(self.consumer, self.residents, 3, 1.0)  # type: ignore[arg-type]
        pacer = ClaimPacer(self.table, passes)
        self.intake = Intake(claimer, pacer, self.table, loads, self.dispatcher, preparation, HOSTED.digest)

    @property
    def waiting(self) -> int:
        """Jobs that wait for their versions."""
        return self.table.count(JobState.AWAITING_VERSION)

    def give(self, *jobs: Claimed) -> None:
        self.consumer.batches.append(list(jobs))
        self.intake.ring()


async def running(b: Bench) -> asyncio.Task[None]:
    task = asyncio.create_task(b.intake.run())
    await until_soon(lambda: b.consumer.strangers)
    return task


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_order_is_kept_by_jobs_that_come_while_their_version_loads() -> None:
    b = Bench()
    b.fetcher.gate.clear()
    task = await running(b)
    for start in range(0, 50, 5):
        b.give(*(claimed(n, "v1") for n in range(start, start + 5)))
        await until_soon(lambda: not b.consumer.batches)
    await until_soon(lambda: b.waiting == 50)
    assert b.scheduler.entered == []
    b.fetcher.gate.set()
    b.give(*(claimed(n, "v1") for n in range(50, 60)))
    await until_soon(lambda: len(b.scheduler.entered) == 60)
    assert b.scheduler.entered == list(range(60))
    assert (b.waiting, b.fetcher.asked, b.consumer.orders) == (0, {"v1": 1}, {"arrival"})
    assert b.consumer.loads == [("a", "v1")] * 2, "whom to blame as it begins and ends"
    assert {n for marked in b.consumer.marks for n in marked} >= {f"{n}" for n in range(50)}, "no claim marks them now"
    for job in list(b.table):
        b.dispatcher.answer(job, "done")
    await until_soon(lambda: not b.residents._lru.pinned("v1"), "the load lets go too, after the last job is in")
    await ended(task)


async def test_what_is_here_does_not_wait_for_what_is_not() -> None:
    b = Bench()
    await b.residents.load("here", "h")
    b.residents.unpin("here")
    b.fetcher.gate.clear()
    task = await running(b)
    b.give(claimed(1, "cold"), claimed(2, "here", "h"), claimed(3, "cold"))
    await until_soon(lambda: b.scheduler.entered == [2])
    assert (b.residents.stats.hits, b.residents.stats.misses) == (1, 2)
    assert b.scheduler.weights == {"a": 2.0, "h": 2.0}
    b.fetcher.gate.set()
    await until_soon(lambda: b.scheduler.entered == [2, 1, 3])
    await ended(task)


async def test_a_version_that_cannot_be_had_answers_its_jobs_alone() -> None:
    b = Bench()
    b.fetcher.failing["torn"] = PackageRejected("torn")
    task = await running(b)
    b.give(claimed(1, "torn"), claimed(2, "v1"), claimed(3, "torn"))
    await until_soon(lambda: b.scheduler.entered == [2] and len(b.outbox.answers) == 2)
    assert {job: str(e) for job, e in b.outbox.answers.items()} == {"1": "torn", "3": "torn"}
    assert b.waiting == 0
    await ended(task)


async def test_a_job_for_other_weights_is_answered_and_nothing_is_loaded_for_it() -> None:
    b = Bench()
    task = await running(b)
    b.give(claimed(1, version_of("v1", OTHER.digest)), claimed(2, on_hosted("v1")))
    await until_soon(lambda: b.scheduler.entered == [2])
    error = b.outbox.answers["1"]
    assert isinstance(error, StaleVersion)
    assert all(part in error.message for part in ("'a'", OTHER.digest, HOSTED.digest))
    assert (b.fetcher.asked, b.residents.stats.misses) == ({"v1": 1}, 1)
    await ended(task)


async def test_while_many_wait_only_resident_vfms_are_asked_for() -> None:
    b = Bench()
    b.fetcher.gate.clear()
    task = await running(b)
    b.give(*(claimed(n, "cold") for n in range(200)))
    await until_soon(lambda: b.waiting == 200 and not b.consumer.strangers[-1])
    b.fetcher.gate.set()
    await until_soon(lambda: b.consumer.strangers[-1])  # at once when they have come in
    assert len(b.scheduler.entered) == 200
    await ended(task)


async def test_a_job_cancelled_while_its_version_loads_does_not_come_in() -> None:
    b = Bench()
    b.fetcher.gate.clear()
    task = await running(b)
    b.give(claimed(1, "v1"), claimed(2, "v1"))
    await until_soon(lambda: b.waiting == 2)
    b.dispatcher.answer(next(iter(b.table)), "cancelled")
    b.fetcher.gate.set()
    await until_soon(lambda: b.scheduler.entered == [2])
    assert b.waiting == 0
    await ended(task)


async def test_a_job_cancelled_before_it_is_here_is_not_run() -> None:
    """The claim has it already, or it comes from a worker that died; the word of its cancellation comes first."""
    b = Bench()
    task = await running(b)
    for n in (2, 7):
        b.dispatcher.cancel(ActiveJob(claimed(n, "v1"), 0.0).key)
    b.give(claimed(1, "v1"), claimed(2, "v1"), claimed(3, "v1"))
    await until_soon(lambda: b.scheduler.entered == [1, 3])
    assert isinstance(b.outbox.answers["2"], Cancelled)
    assert (len(b.outbox.answers), b.waiting) == (1, 0)
    await ended(task)
