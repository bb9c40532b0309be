"""Who waits for whose preparation, what is charged, and what becomes of a preparation that raises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fmplex_broker.errors import DeadlineExceeded, FmplexError, InvalidInput, JobFailed
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import INTERACTIVE, Flow, Request, encode_request
from fmplex_worker.host import preparation as module
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.lease import LeaseLost
from fmplex_worker.host.preparation import THREADS, Preparation
from fmplex_worker.protocol import Prepared
from fmplex_worker.scheduling import CostModel, KvAdmission, make_scheduler
from tests.support.waiting import until_soon
from tests.unit.host.tables import Encode, FakeOutbox, Table

Act = Callable[[str], None]  # what preparing an input does: it may wait, or raise


class Panic(BaseException):
    """As libraries in Rust raise it: no Exception."""


class Engine:
    """Prepares what it is told to. Inputs that begin with `slow` say so themselves; `acts` says what an input does."""

    def __init__(self) -> None:
        self.acts: dict[str, Act] = {}
        self.batches: list[list[str]] = []
        self.surprises = False  # even slow ones look quick

    def quick(self, digest: str, request: Request) -> bool:
        return self.surprises or not request.input.startswith("slow")

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        self.batches.append([request.input for _, request in batch])
        return [self._prepare(request.input) for _, request in batch]

    def _prepare(self, text: str) -> Prepared | FmplexError:
        self.acts.get(text, lambda _: None)(text)
        return InvalidInput("no", field="input") if text.startswith("wrong") else Encode(10)

    def drop(self, prepared: Prepared) -> None:
        """It keeps nothing."""


class Broker:
    """Keeps whom it was told to blame, each time."""

    worker = "w"

    def __init__(self) -> None:
        self.marks: list[set[str]] = []
        self.alive = True

    async def mark(self, jobs: Iterable[Claimed], *, preparing: bool, tuning: str = "") -> bool:
        self.marks.append({job.job for job in jobs})
        return self.alive


class Clock:
    def now_ms(self) -> float:
        return 0.0


class Bench:
    def __init__(self, tasks: asyncio.TaskGroup, threads: ThreadPoolExecutor) -> None:
        self.engine, self.broker, self.outbox = Engine(), Broker(), FakeOutbox()
        self.cost = CostModel(1000)
        self.scheduler = make_scheduler("drr", self.cost, 1000)
        self.table = Table(8)
        engine: Any = self.engine
        outbox: Any = self.outbox
        self.dispatcher = Dispatcher(engine, self.scheduler, self.table, KvAdmission(0, {}), outbox)
        broker: Any = self.broker
        self.blame = Blame(broker)
        clock: Any = Clock()
        self.preparation = Preparation(engine, self.dispatcher, clock, threads, self.blame, tasks)

    def job(self, text: str, vfm: str = "a", attempts: int = 1, deadline_ms: int = 10_000) -> ActiveJob:
        payload = encode_request(Request(text, {}))
        entry = f"{len(self.table) + 1}-0"
        claimed = Claimed(Flow(vfm, INTERACTIVE), entry, text, "in", "v", 10, deadline_ms, payload, attempts)
        job = self.table.add(claimed, 0.0)
        self.dispatcher.prepare(job)
        return job

    async def admit(self, *jobs: ActiveJob, marked: bool = True) -> None:
        await self.preparation.admit(jobs, marked=marked)

    def state(self, text: str) -> JobState:
        return next(job.state for job in self.table if job.claimed.job == text)

    def charged(self, vfm: str) -> float:
        share = self.scheduler.shares().get(Flow(vfm, INTERACTIVE))
        return share.charged if share else 0.0


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    gates: list[threading.Event] = []
    with ThreadPoolExecutor(THREADS) as threads:
        tasks = asyncio.TaskGroup()
        async with tasks:
            bench = Bench(tasks, threads)
            bench.gate = lambda: gates.append(threading.Event()) or gates[-1]  # type: ignore[attr-defined]
            yield bench
            for gate in gates:
                gate.set()


def held(bench: Bench, *texts: str) -> threading.Event:
    """Let the preparation of these wait until the event is set; at the end of the test at the latest."""
    gate: threading.Event = bench.gate()  # type: ignore[attr-defined]
    for text in texts:
        bench.engine.acts[text] = lambda _: gate.wait(60) and None
    return gate


# --- quick ones --------------------------------------------------------------------------------------------------------


async def test_what_is_quick_goes_together_and_costs_no_call(bench: Bench) -> None:
    await bench.admit(*(bench.job(f"{i}", "abc"[i % 3]) for i in range(9)))
    assert bench.engine.batches == [[f"{i}" for i in range(9)]]
    assert {bench.state(f"{i}") for i in range(9)} == {JobState.READY}
    assert bench.broker.marks == [], "their claim has marked them"
    assert bench.blame.claimed == []
    assert bench.charged("a") == 0


async def test_what_no_claim_has_marked_is_marked_first(bench: Bench) -> None:
    """Their version was loaded meanwhile: other claims have come since."""
    bench.engine.acts["x"] = lambda _: bench.broker.marks.append({"prepared"})
    await bench.admit(bench.job("x"), bench.job("y"), marked=False)
    assert bench.broker.marks == [{"x", "y"}, {"prepared"}]


async def test_what_comes_meanwhile_goes_together_when_that_is_through(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 60.0)
    gate = held(bench, "first")
    waiting = [asyncio.create_task(bench.admit(bench.job("first")))]
    await until_soon(lambda: bench.engine.batches)
    waiting += [asyncio.create_task(bench.admit(bench.job(f"{i}"))) for i in range(5)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*waiting)
    assert bench.engine.batches == [["first"], [f"{i}" for i in range(5)]]


# --- slow ones ---------------------------------------------------------------------------------------------------------


async def test_a_slow_vfm_waits_for_itself_alone(bench: Bench) -> None:
    gate = held(bench, "slow1", "slow2", "slow3")
    await bench.admit(*(bench.job(f"slow{i}", "sloth") for i in (1, 2, 3)), bench.job("x", "swift"))
    assert bench.state("x") is JobState.READY
    for i in range(20):
        await bench.admit(bench.job(f"y{i}", "swift"))
        assert bench.state(f"y{i}") is JobState.READY
    assert [b for b in bench.engine.batches if "slow" in b[0]] == [["slow1"]], "one at a time"
    assert bench.preparation.crowded == {Flow("sloth", INTERACTIVE)}, "no more of it need be claimed"
    assert bench.table.room.taken[INTERACTIVE] == 21 * 10, "it takes no room from others"
    gate.set()
    await until_soon(lambda: {bench.state(f"slow{i}") for i in (1, 2, 3)} == {JobState.READY})
    assert bench.preparation.crowded == set()


async def test_slow_vfms_do_not_wait_for_each_other(bench: Bench) -> None:
    held(bench, "slow")
    await bench.admit(bench.job("slow", "one"))
    await bench.admit(bench.job("slow too", "two"))
    await until_soon(lambda: bench.state("slow too") is JobState.READY)


async def test_the_broker_knows_of_each_before_it_is_prepared(bench: Bench) -> None:
    bench.engine.acts["slow1"] = bench.engine.acts["slow2"] = lambda text: bench.broker.marks.append({f"at {text}"})
    await bench.admit(bench.job("slow1", "a"), bench.job("slow2", "a"))
    await until_soon(lambda: bench.state("slow2") is JobState.READY)
    assert bench.broker.marks == [{"slow1"}, {"at slow1"}, {"slow2"}, {"at slow2"}]


async def test_it_is_charged_and_its_flow_told(bench: Bench) -> None:
    gate = held(bench, "slow")
    job = bench.job("slow", "sloth")
    rung = bench.table.freed
    await bench.admit(job, bench.job("x", "swift"))
    rung.clear()
    await asyncio.sleep(0.06)
    gate.set()
    await until_soon(lambda: bench.state("slow") is JobState.READY)
    assert bench.charged("sloth") >= 0.06
    assert bench.charged("swift") == 0
    assert job.charged == pytest.approx(bench.charged("sloth") / bench.cost.price(1)), "its stream's time too"
    assert bench.scheduler.shares()[Flow("sloth", INTERACTIVE)].deficit < 0


async def test_what_takes_but_a_moment_costs_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template of a vFM's own, at every call: it is the device's time that is shared."""
    monkeypatch.setattr(module, "_MOMENT_S", 60.0)
    await bench.admit(bench.job("slow", "chatty"))
    await until_soon(lambda: bench.state("slow") is JobState.READY)
    assert bench.charged("chatty") == 0


async def test_a_refused_one_is_charged_too(bench: Bench) -> None:
    bench.engine.acts["slow wrong"] = lambda _: None
    bench.engine.quick = lambda digest, request: False  # type: ignore[method-assign]
    gate = held(bench, "wrong")
    await bench.admit(bench.job("wrong", "sloth"))
    await asyncio.sleep(0.06)
    gate.set()
    await until_soon(lambda: isinstance(bench.outbox.answers.get("wrong"), InvalidInput))
    assert bench.charged("sloth") >= 0.06


async def test_jobs_cancelled_in_line_are_not_prepared_and_one_at_it_does_not_come_in(bench: Bench) -> None:
    gate = held(bench, "slow0")
    jobs = [bench.job(f"slow{i}") for i in range(3)]
    await bench.admit(*jobs)
    await until_soon(lambda: bench.engine.batches)
    for job in jobs[:2]:
        bench.dispatcher.cancel(job.key)
    gate.set()
    await until_soon(lambda: bench.state("slow2") is JobState.READY)
    assert bench.engine.batches == [["slow0"], ["slow2"]]
    assert set(bench.outbox.answers) == {"slow0", "slow1"}


async def test_a_surprise_holds_up_nobody_who_comes_after_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looked quick. What came with it waits; who comes now does not, and its vFM goes by itself from now on."""
    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    bench.engine.surprises = True
    gate = held(bench, "slow1")
    jobs = [bench.job("slow1", "sloth"), bench.job("beside", "unlucky")]
    await bench.admit(*jobs)
    assert [claimed.job for claimed in bench.blame.claimed] == ["slow1", "beside"], "the next claim marks them again"
    monkeypatch.setattr(module, "_PATIENCE_S", 60.0)  # there are no more
    await bench.admit(bench.job("x", "swift"), bench.job("y", "sloth"))
    assert bench.state("x") is JobState.READY
    assert bench.state("slow1") is bench.state("beside") is JobState.PREPARING
    await until_soon(lambda: bench.state("y") is JobState.READY)
    assert sorted(bench.engine.batches) == [["slow1", "beside"], ["x"], ["y"]]
    await bench.admit(bench.job("z", "sloth"))
    assert bench.engine.batches[-1] == ["z"]
    assert bench.broker.marks == [{"y"}], "z goes with others again: y was quick"
    gate.set()
    await until_soon(lambda: bench.state("beside") is JobState.READY)
    assert bench.blame.claimed == []


# --- what raises -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("x" * 10_000), MemoryError(), RecursionError("deep"), Panic("rust")])
@pytest.mark.parametrize("attempts", [1, 2])
async def test_what_raises_is_the_error_of_that_job_alone(bench: Bench, error: BaseException, attempts: int) -> None:
    def act(text: str) -> None:
        raise error

    bench.engine.acts["bad"] = act
    await bench.admit(*(bench.job(text, attempts=attempts) for text in ("bad", "good0", "good1")))
    await until_soon(lambda: bench.state("good0") is JobState.READY)
    answer = bench.outbox.answers["bad"]
    assert isinstance(answer, JobFailed)
    assert type(error).__name__ in answer.message
    assert len(answer.message) < 1000
    assert attempts == 2 or bench.state("good1") is JobState.READY


async def test_a_payload_that_cannot_be_read_is_the_error_of_that_job_alone(bench: Bench) -> None:
    broken, late = bench.job("broken"), bench.job("late", deadline_ms=0)
    broken.claimed.payload = b"\xc1"
    await bench.admit(broken, late, bench.job("good"))
    assert isinstance(bench.outbox.answers["broken"], InvalidInput)
    assert isinstance(bench.outbox.answers["late"], DeadlineExceeded)
    assert bench.state("good") is JobState.READY


async def test_a_look_that_raises_is_the_error_of_that_job_alone(bench: Bench) -> None:
    def quick(digest: str, request: Request) -> bool:
        return bool(1 / (request.input != "odd"))

    bench.engine.quick = quick  # type: ignore[method-assign]
    await bench.admit(bench.job("odd"), bench.job("good"))
    assert isinstance(bench.outbox.answers["odd"], JobFailed)
    assert bench.state("good") is JobState.READY


# --- redelivered ones --------------------------------------------------------------------------------------------------


def run(bench: Bench, text: str) -> None:
    """Let a job, which is ready, run to its end."""
    job = next(job for job in bench.table if job.claimed.job == text)
    (key,) = job.pieces
    bench.scheduler.remove(key)
    bench.table.start(key)
    bench.table.land(job, 0.0)
    bench.dispatcher.answer(job, "done")


async def test_redelivered_jobs_are_prepared_and_run_one_at_a_time(bench: Bench) -> None:
    """While one is at it, from its preparation to the end of its pass, no other is to blame."""
    await bench.admit(*(bench.job(f"r{i}", "ab"[i % 2], attempts=2) for i in range(4)), bench.job("x"))
    assert bench.state("x") is JobState.READY, "it waits for none of them"
    for i in range(4):
        await until_soon(lambda text=f"r{i}": bench.state(text) is JobState.READY)
        assert bench.broker.marks[-1] == {f"r{i}"}
        assert all(bench.state(f"r{k}") is JobState.AWAITING_PREPARATION for k in range(i + 1, 4))
        run(bench, f"r{i}")
    assert [batch for batch in bench.engine.batches if batch != ["x"]] == [["r0"], ["r1"], ["r2"], ["r3"]]


async def test_the_next_goes_when_one_is_refused_or_cancelled(bench: Bench) -> None:
    gate = held(bench, "r2")
    jobs = [bench.job(text, attempts=2) for text in ("wrong", "r1", "r2", "r3")]
    await bench.admit(*jobs)
    await until_soon(lambda: bench.state("r1") is JobState.READY)
    assert isinstance(bench.outbox.answers["wrong"], InvalidInput)
    bench.dispatcher.cancel(jobs[1].key)  # it waits for its pass
    await until_soon(lambda: ["r2"] in bench.engine.batches)
    gate.set()
    await until_soon(lambda: bench.state("r2") is JobState.READY)
    run(bench, "r2")
    await until_soon(lambda: bench.state("r3") is JobState.READY)


async def test_a_vfm_whose_redelivered_jobs_take_long_has_its_turns_between_those_of_others(bench: Bench) -> None:
    gate = held(bench, "slow0")
    await bench.admit(*(bench.job(f"slow{i}", "sloth", attempts=2) for i in range(3)))
    await bench.admit(bench.job("x", "swift", attempts=2))
    gate.set()
    order: list[str] = []
    while len(order) < 4:
        await until_soon(lambda: any(job.state is JobState.READY for job in bench.table))
        order.append(next(job.claimed.job for job in bench.table if job.state is JobState.READY))
        run(bench, order[-1])
    assert order == ["slow0", "x", "slow1", "slow2"]


async def test_a_drain_gives_back_all_that_wait(bench: Bench) -> None:
    held(bench, "r0", "slow0")
    await bench.admit(*(bench.job(f"r{i}", attempts=2) for i in range(3)), bench.job("slow0"), bench.job("slow1"))
    await until_soon(lambda: len(bench.engine.batches) == 2)
    given = bench.dispatcher.release_idle()
    assert {job.claimed.job for job in given} == {"r0", "r1", "r2", "slow0", "slow1"}
    assert len(bench.table) == 0


async def test_who_ends_one_after_the_intake_has_ended_begins_nothing(bench: Bench) -> None:
    """A drain: the intake has gone, a redelivered job runs, and the next in line is given back."""
    with ThreadPoolExecutor(1) as threads:
        async with asyncio.TaskGroup() as tasks:
            late = Bench(tasks, threads)
            await late.admit(late.job("r0", attempts=2), late.job("r1", attempts=2))
            await until_soon(lambda: late.state("r0") is JobState.READY)
        run(late, "r0")
    assert late.state("r1") is JobState.AWAITING_PREPARATION
    assert [job.claimed.job for job in late.dispatcher.release_idle()] == ["r1"]


async def test_a_lost_lease_ends_the_intake(bench: Bench) -> None:
    batches: list[list[str]] = []

    async def intake() -> None:
        with ThreadPoolExecutor(1) as threads:
            async with asyncio.TaskGroup() as tasks:
                late = Bench(tasks, threads)
                late.engine.batches, late.broker.alive = batches, False
                await late.admit(late.job("slow"))
                await asyncio.sleep(60)

    with pytest.raises(ExceptionGroup) as lost:
        await intake()
    assert lost.value.subgroup(LeaseLost)
    assert batches == [], "nothing is prepared that is not ours any more"
