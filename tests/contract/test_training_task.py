"""The training task of a worker, with a broker and a store: from a claim to a version that serves, whatever comes between."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from fmplex_broker.errors import InvalidInput, NonFiniteOutput, PackageRejected, StoreUnavailable, TooLarge
from fmplex_broker.packages.archive import unpack
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.checkpoints import CheckpointStore
from fmplex_broker.packages.files import FileStore
from fmplex_broker.packages.package import MANIFEST
from fmplex_broker.packages.writing import manifest
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.tune_records import TuneRecord
from fmplex_broker.specs.tuning import Base, Publish, TuneFit, checkpoint_id
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.registry import Registry
from fmplex_broker.streams.tune_owner import TuneOwner
from fmplex_broker.streams.tunes import Tunes
from fmplex_broker.wire.stats import TrainingStats
from fmplex_worker.host import training as task_module
from fmplex_worker.host import tune_checkpoints, tune_course
from fmplex_worker.host.training import TrainingTask
from fmplex_worker.host.training_job import TrainingJob
from fmplex_worker.host.training_turn import Unfit
from fmplex_worker.host.tune_desk import TuneDesk
from fmplex_worker.host.tune_memory import TuneMemory
from fmplex_worker.host.tune_publishing import Publisher
from fmplex_worker.host.tune_shelf import TuneShelf
from fmplex_worker.protocol import EngineInfo
from fmplex_worker.training import HeldOut, MemoryNeed, RunProgress, TuneOrder, Unit
from tests.contract.harness import BACKBONE, Bench, ended
from tests.support.hosting import HOSTED
from tests.support.tunes import MOST, Orders
from tests.support.tuning_data import CHATS, jsonl
from tests.support.waiting import until

STEPS, BEST = 6, 5
MEMORY = 1 << 30


@dataclass(frozen=True)
class FakeSnapshot:
    step: int
    chain: list[str]

    def dump(self) -> bytes:
        return json.dumps([self.step, self.chain]).encode()

    def package(self) -> dict[str, bytes]:
        learnt = VfmSpec(name="x", backbone=BACKBONE, head=Generation(system=self.chain[self.step]))
        return {MANIFEST: manifest(learnt).encode()}


class FakeTraining:
    """A training whose result is a chain of digests: of the example file and the seed, and of every step. The last but one is
    the best."""

    def __init__(self, order: TuneOrder, state: bytes | None, gate: threading.Event, fails: Exception | None) -> None:
        self._spec = order.spec
        self._gate, self._fails = gate, fails
        begun = hashlib.sha256(order.spec.data.read_bytes() + b"%d" % order.spec.seed).hexdigest()
        self._chain = [begun] if state is None else json.loads(state)[1]
        self._step = len(self._chain) - 1
        self._saved = self._step
        self._over = False

    def next(self) -> Unit | None:
        if self._step >= STEPS:
            self._over = True
            return None
        return Unit("step", 10, 1.0, self._run)

    def _run(self) -> None:
        self._gate.wait(30)
        if self._fails is not None:
            raise self._fails
        self._step += 1
        self._chain.append(hashlib.sha256(self._chain[-1].encode()).hexdigest())

    @property
    def progress(self) -> RunProgress:
        over = "finished" if self._over else ""
        held_out = HeldOut("accuracy", 0.9, 0.1) if self._over else None
        loss, best = 1 / (1 + self._step), min(self._step, BEST)
        return RunProgress(self._step, STEPS, 1, loss, 0.5, 0.9, 10 * self._step, best, over, held_out)

    needs = MemoryNeed(0, 0)
    holds = 0

    def limit(self, nbytes: int) -> None:
        self.holds = min(nbytes, self.needs.most)

    @property
    def checkpoint_due(self) -> bool:
        return self._saved != self._step

    def snapshot(self) -> FakeSnapshot:
        self._saved = self._step
        return FakeSnapshot(self._step, [*self._chain])

    def package(self) -> dict[str, bytes]:
        return FakeSnapshot(min(self._step, BEST), self._chain).package()


class FakeEngine:
    info = EngineInfo(BACKBONE, "text", 8, 512, "cpu", 0, HOSTED, 2)

    def __init__(self) -> None:
        self.orders: list[TuneOrder] = []
        self.states: list[bytes | None] = []
        self.gate = threading.Event()
        self.gate.set()
        self.opening = threading.Event()
        self.opening.set()
        self.refuses: Exception | None = None
        self.fails: Exception | None = None
        self.needs = MemoryNeed(0, 0)

    def tune(self, order: TuneOrder, state: bytes | None) -> FakeTraining:
        self.orders.append(order)
        self.states.append(state)
        self.opening.wait(30)
        if self.refuses is not None:
            raise self.refuses
        training = FakeTraining(order, state, self.gate, self.fails)
        training.needs = self.needs
        return training


class FakeTurn:
    """Runs the units of each training on a device thread, one after the other."""

    def __init__(self, device: ThreadPoolExecutor) -> None:
        self._device = device
        self._running: dict[TrainingJob, asyncio.Task[None]] = {}
        self.stuck: tuple[float, float, float] | None = None

    async def add(self, job: TrainingJob) -> None:
        job.advance()
        self._running[job] = asyncio.create_task(self._run(job))

    async def _run(self, job: TrainingJob) -> None:
        loop = asyncio.get_running_loop()
        while job.unit is not None and self.stuck is None:
            await loop.run_in_executor(self._device, self._unit, job)
            if job.cut is not None:
                job.news.set()
        job.ended = job.error is None and self.stuck is None
        job.news.set()

    def _unit(self, job: TrainingJob) -> None:
        assert job.unit is not None
        try:
            job.unit.run()
            job.advance()
        except Exception as e:
            job.unit, job.error = None, e

    async def remove(self, job: TrainingJob) -> None:
        if (task := self._running.pop(job, None)) is not None:
            await ended(task)

    def unfit(self) -> Any:
        return None if self.stuck is None or not self._running else Unfit(next(iter(self._running)), *self.stuck)


class FakeBlame:
    def __init__(self) -> None:
        self.marks: list[str] = []

    async def open(self, job: str) -> None:
        self.marks.append(job)

    def opened(self) -> None:
        self.marks.append("")


class Shop:
    """Who orders, and workers that train what is ordered."""

    def __init__(self, bench: Bench, url: Path) -> None:
        self.bench = bench
        self.orders = Orders(bench.redis, bench.scripts, BACKBONE)
        self.registry = Registry(bench.redis, bench.scripts)
        self.store = ArtifactStore(str(url))
        self.engine, self.blame = FakeEngine(), FakeBlame()
        self.threads = ThreadPoolExecutor(4)
        self.turn: FakeTurn
        self.tasks: list[TrainingTask] = []
        self.consumers: list[Consumer] = []
        self._running: list[asyncio.Task[Any]] = []
        self.refusal: PackageRejected | None = None

    async def worker(self) -> asyncio.Task[None]:
        """Start the training task of a worker, which has a device thread of its own."""
        consumer = await self.bench.worker(f"w{len(self.tasks)}")
        self.consumers.append(consumer)
        device = ThreadPoolExecutor(1)
        redis, scripts = self.bench.redis, self.bench.scripts
        self.turn = FakeTurn(device)
        desk = TuneDesk(
            backbone=BackboneSpec(name=BACKBONE, model="m", max_tokens=512),
            engine=cast(Any, self.engine),
            turn=cast(Any, self.turn),
            blame=cast(Any, self.blame),
            owner=TuneOwner(redis, scripts, BACKBONE, consumer.worker),
            tunes=Tunes(redis, scripts),
            files=FileList(redis),
            shelf=TuneShelf(self.store),
            publisher=Publisher(self.registry, HOSTED.digest),
            threads=self.threads,
            memory=TuneMemory(MEMORY, TrainingStats()),
        )
        task = TrainingTask(desk, cast(Any, []), MOST)
        self.tasks.append(task)
        running = asyncio.create_task(task.run())
        self._running += [running, asyncio.create_task(self._vote(consumer.worker))]
        await until(lambda: self.bench.redis.hget(f"{self.bench.keys.prefix}held:{consumer.worker}", "#place"))
        return running

    async def _vote(self, worker: str) -> None:
        while True:
            for vfm in await self.registry.offers(BACKBONE):
                now = await self.registry.show(vfm)
                if now.candidate is not None:
                    await self.registry.vote(BACKBONE, vfm, now.candidate[0], worker, self.refusal)
            await asyncio.sleep(0.02)

    async def order(self, **more: Any) -> str:
        spec = await self.orders.spec(**({"fit": TuneFit(head="generation")} | more))
        with FileStore(self.store.url).writing(spec.training_file) as out:
            out.write(jsonl(*CHATS))
        record = await self.orders.add(spec)
        await self.orders.checked(record, examples=len(CHATS))
        return spec.id

    async def over(self, job: str) -> TuneRecord:
        """The job once it has ended."""
        await until(lambda: self._is_over(job))
        return await self.orders.find(job, "me")

    async def _is_over(self, job: str) -> bool:
        return (await self.orders.find(job, "me")).ended

    async def close(self) -> None:
        self.engine.gate.set()
        self.engine.opening.set()
        await ended(*self._running)
        self.threads.shutdown()


@pytest.fixture
async def shop(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    monkeypatch.setattr(tune_course, "SAVE_S", 0.03)
    monkeypatch.setattr(tune_course, "_AGAIN_S", 0.03)
    monkeypatch.setattr(tune_checkpoints, "_LEAST_S", 0.0)
    monkeypatch.setattr(tune_checkpoints, "_TIMES", 0)
    monkeypatch.setattr(task_module, "_CLAIM_S", 0.03)
    shop = Shop(bench, tmp_path / "store")
    await shop.orders.known()
    yield shop
    await shop.close()


def system(shop: Shop, name: str) -> Callable[[], Any]:
    async def read() -> str:
        now = await shop.registry.show(name)
        head = now.spec.head
        assert isinstance(head, Generation)
        return head.system

    return read


async def test_a_job_becomes_a_vfm_with_its_checkpoints_and_figures(shop: Shop) -> None:
    await shop.worker()
    job = await shop.order(publish=Publish(how="as", vfm="new"))
    done = await shop.over(job)
    assert (done.status, done.error, done.vfm) == ("succeeded", None, "new")
    now = await shop.registry.show("new")
    assert (now.status, now.version) == ("serving", done.version)
    assert (done.progress.step, done.progress.steps, done.progress.tokens) == (STEPS, STEPS, 10 * STEPS)
    last = done.checkpoints[-1]
    assert last.step == STEPS
    kept = unpack(CheckpointStore(shop.store.url).get(job, last.name, "package"))
    assert kept.spec.name == "new"
    assert isinstance(kept.spec.head, Generation)
    best = await system(shop, "new")()
    assert hashlib.sha256(best.encode()).hexdigest() == kept.spec.head.system, "the best is published, not the last"
    assert all(one.step <= BEST for one in done.checkpoints if one.best)
    folder = Path(shop.store.url) / "checkpoints" / job
    await until(
        lambda: {path.name.partition(".")[0] for path in folder.iterdir()} == {c.name for c in done.checkpoints}
    )
    (file,) = done.result_files
    rows = FileStore(shop.store.url).open(file).read().decode().splitlines()
    assert rows[0].startswith("step,train_loss")
    assert rows[-1].startswith(f"{STEPS},")
    assert (await FileList(shop.bench.redis).find(file, "me")).purpose == "fine-tune-results"
    said = await shop.orders.said(job)
    assert any(words.startswith("Held-out accuracy 0.9") for words in said)
    assert shop.blame.marks == [job, "", job, ""], "while it is opened, and while its first unit is made"
    order = shop.engine.orders[0]
    assert (order.memory, order.validation, order.start) == (MEMORY, None, None)
    assert not order.spec.data.exists()


async def test_who_needs_more_memory_than_is_free_waits_says_so_and_is_done_later(shop: Shop) -> None:
    await shop.worker()
    shop.engine.needs = MemoryNeed(MEMORY // 2 + 1, MEMORY)
    shop.engine.gate.clear()
    jobs = [await shop.order(publish=Publish(how="none")) for _ in range(2)]
    await until(lambda: _one_waits(shop, jobs))
    shop.engine.gate.set()
    assert [(await shop.over(job)).status for job in jobs] == ["succeeded"] * 2
    assert len(shop.engine.orders) == 2


async def test_who_waits_for_memory_can_be_cancelled(shop: Shop) -> None:
    await shop.worker()
    shop.engine.needs = MemoryNeed(MEMORY, MEMORY)
    shop.engine.gate.clear()
    first, second = [await shop.order(publish=Publish(how="none")) for _ in range(2)]
    await until(lambda: _one_waits(shop, [first, second]))
    waiting = first if await _waits(shop, first) else second
    await shop.orders.ask(waiting, "me", "cancel")
    assert (await shop.over(waiting)).status == "cancelled"
    shop.engine.gate.set()
    assert (await shop.over(second if waiting == first else first)).status == "succeeded"


async def _waits(shop: Shop, job: str) -> bool:
    return any(words.startswith("Waiting for memory") for words in await shop.orders.said(job))


async def _one_waits(shop: Shop, jobs: list[str]) -> bool:
    return sum([await _waits(shop, job) for job in jobs]) == 1


async def test_the_best_state_is_a_checkpoint_though_later_ones_came_before_it_was_saved(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_checkpoints, "_LEAST_S", 3600)
    await shop.worker()
    job = await shop.order(publish=Publish(how="as", vfm="new"))
    done = await shop.over(job)
    best, last = done.checkpoints[-2:]
    assert (best.step, best.best, last.step, last.best) == (BEST, True, STEPS, False)
    kept = unpack(CheckpointStore(shop.store.url).get(job, best.name, "package"))
    assert done.version is not None
    assert kept.digest == artifact_of(done.version), "it is what is published"


async def test_another_worker_goes_on_after_a_drain_to_the_same_result(shop: Shop) -> None:
    first = await shop.worker()
    alone = await shop.over(await shop.order(publish=Publish(how="as", vfm="alone")))
    shop.engine.gate.clear()
    job = await shop.order(publish=Publish(how="as", vfm="new"))
    await until(lambda: len(shop.engine.orders) == 2)
    shop.engine.gate.set()
    await until(lambda: _kept(shop, job))
    shop.tasks[0].stop()
    await first
    await shop.worker()
    done = await shop.over(job)
    assert done.status == "succeeded"
    assert await system(shop, "new")() == await system(shop, "alone")()
    assert done.progress.tokens == alone.progress.tokens


async def _kept(shop: Shop, job: str) -> bool:
    return bool((await shop.orders.find(job, "me")).checkpoints)


async def test_who_has_lost_his_lease_saves_and_publishes_no_more(shop: Shop) -> None:
    old = await shop.worker()
    shop.engine.gate.clear()
    job = await shop.order()
    await until(lambda: shop.engine.orders)
    await shop.bench.lapse(shop.consumers[0])
    judge = await shop.bench.worker("judge")
    while (await judge.reap(10**6, max_attempts=MOST)).more:
        pass
    await judge.leave()
    await shop.worker()
    await until(lambda: len(shop.engine.orders) == 2)
    shop.engine.gate.set()
    done = await shop.over(job)
    assert (done.status, done.worker, len(shop.engine.orders)) == ("succeeded", None, 2)
    assert done.progress.tokens == 10 * STEPS
    assert (await shop.registry.show("new")).past == ()
    assert not old.done()


async def test_pause_and_resume_go_on_from_the_last_checkpoint(shop: Shop) -> None:
    await shop.worker()
    shop.engine.gate.clear()
    job = await shop.order()
    await until(lambda: shop.engine.orders)
    await shop.orders.ask(job, "me", "pause")
    shop.engine.gate.set()
    await until(lambda: _free(shop, job))
    record = await shop.orders.find(job, "me")
    assert (record.status, record.worker) == ("paused", None)
    await shop.orders.ask(job, "me", "resume")
    done = await shop.over(job)
    assert done.status == "succeeded"
    if record.checkpoints:
        assert json.loads(shop.engine.states[-1] or b"[0]")[0] == record.checkpoints[-1].step


async def _free(shop: Shop, job: str) -> bool:
    return (await shop.orders.find(job, "me")).worker is None


async def test_who_gives_up_while_it_is_opened_is_to_blame_until_that_has_ended(shop: Shop) -> None:
    """Its thread goes on, and may still be the death of the worker; meanwhile no other one is opened."""
    shop.engine.opening.clear()
    await shop.worker()
    job = await shop.order()
    await until(lambda: shop.engine.orders)
    await shop.orders.ask(job, "me", "cancel")
    assert (await shop.over(job)).status == "cancelled"
    other = await shop.order(seed=1)

    async def taken() -> bool:
        return (await shop.orders.find(other, "me")).worker is not None

    await until(taken)
    assert (shop.blame.marks, len(shop.engine.orders)) == ([job], 1)
    shop.engine.opening.set()
    assert (await shop.over(other)).status == "succeeded"
    assert shop.blame.marks == [job, "", other, "", other, ""]


async def test_cancel_keeps_what_was_learnt_and_publishes_nothing(shop: Shop) -> None:
    await shop.worker()
    shop.engine.gate.clear()
    job = await shop.order()
    await until(lambda: shop.engine.orders)
    await shop.orders.ask(job, "me", "cancel")
    shop.engine.gate.set()
    await until(lambda: _free(shop, job))
    record = await shop.orders.find(job, "me")
    assert (record.status, record.vfm) == ("cancelled", None)


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        (InvalidInput("line 3: too long", field="data"), "invalid_training_file", "training_file"),
        (TooLarge("too much", field="worker.tuning.bytes"), "too_large", "worker.tuning.bytes"),
        (ValueError("a bug"), "job_failed", None),
    ],
)
async def test_what_cannot_be_opened_fails_with_its_reason(
    shop: Shop, error: Exception, code: str, param: str | None
) -> None:
    shop.engine.refuses = error
    await shop.worker()
    done = await shop.over(await shop.order())
    assert done.error is not None
    assert (done.status, done.error.code, done.error.param) == ("failed", code, param)


async def test_a_training_that_diverges_fails_and_its_worker_takes_the_next_job(shop: Shop) -> None:
    shop.engine.fails = NonFiniteOutput("diverged", field="learning_rate")
    await shop.worker()
    done = await shop.over(await shop.order())
    assert done.error is not None
    assert (done.status, done.error.code) == ("failed", "non_finite_output")
    shop.engine.fails = None
    assert (await shop.over(await shop.order())).status == "succeeded"


async def test_an_update_becomes_the_next_version_and_only_of_the_generation_it_expects(shop: Shop) -> None:
    await shop.worker()
    first = await shop.over(await shop.order(publish=Publish(how="as", vfm="new")))
    now = (await shop.registry.show("new")).generation
    second = await shop.over(await shop.order(publish=Publish(how="update", vfm="new", generation=now), seed=1))
    assert second.version != first.version
    assert (await shop.registry.show("new")).version == second.version
    job = await shop.order(publish=Publish(how="update", vfm="new", generation=now), seed=2)
    third = await shop.over(job)
    assert (third.status, third.vfm) == ("succeeded", None)
    assert any(words.startswith("Not published: ") for words in await shop.orders.said(job))
    assert (await shop.registry.show("new")).version == second.version


async def test_what_was_offered_by_a_worker_that_died_then_is_not_offered_again(shop: Shop) -> None:
    await shop.worker()
    first = await shop.over(await shop.order(publish=Publish(how="as", vfm="new")))
    before = await shop.registry.show("new")
    again = await shop.over(await shop.order(publish=Publish(how="as", vfm="new")))
    assert (again.status, again.vfm, again.version) == ("succeeded", "new", first.version)
    assert (await shop.registry.show("new")).generation == before.generation


async def test_a_checkpoint_that_is_gone_on_with_is_copied(shop: Shop) -> None:
    await shop.worker()
    first = await shop.over(await shop.order(publish=Publish(how="as", vfm="new")))
    last = first.checkpoints[-1]
    assert first.version is not None
    base = Base(vfm="new", version=first.version, checkpoint=checkpoint_id(first.spec.id, last.step))
    second = await shop.over(await shop.order(base=base, publish=Publish(how="as", vfm="newer"), seed=1))
    assert second.status == "succeeded", second.error
    start = shop.engine.orders[-1].start
    assert start is not None
    assert start.digest == unpack(CheckpointStore(shop.store.url).get(second.spec.id, "base", "package")).digest
    CheckpointStore(shop.store.url).forget(first.spec.id)
    third = await shop.over(await shop.order(base=base, publish=Publish(how="none")))
    assert third.error is not None
    assert (third.status, third.error.code, third.error.param) == ("failed", "unknown_file", "model")


@pytest.mark.parametrize("how", ["update", "canary"])
async def test_the_vfm_to_publish_to_was_removed_meanwhile(shop: Shop, how: Literal["update", "canary"]) -> None:
    await shop.worker()
    job = await shop.order(publish=Publish(how=how, vfm="gone", generation=1))
    done = await shop.over(job)
    assert (done.status, done.vfm, done.version) == ("succeeded", None, None)
    assert any(words.startswith("Not published: ") for words in await shop.orders.said(job))


async def test_workers_refuse_what_was_learnt(shop: Shop) -> None:
    shop.refusal = PackageRejected("it does not fit", field="head")
    await shop.worker()
    job = await shop.order()
    done = await shop.over(job)
    assert (done.status, done.vfm) == ("succeeded", None)
    assert any("it does not fit" in words for words in await shop.orders.said(job))


async def test_a_job_that_publishes_nothing_keeps_its_checkpoints(shop: Shop) -> None:
    await shop.worker()
    done = await shop.over(await shop.order(publish=Publish(how="none")))
    assert (done.status, done.vfm) == ("succeeded", None)
    assert done.checkpoints


async def test_a_canary_has_a_name_beside_its_vfm(shop: Shop) -> None:
    await shop.worker()
    first = await shop.over(await shop.order(publish=Publish(how="as", vfm="main")))
    done = await shop.over(await shop.order(publish=Publish(how="canary", vfm="main", generation=3), seed=1))
    assert (done.status, done.vfm) == ("succeeded", "main-canary")
    assert (await shop.registry.show("main")).version == first.version


async def test_a_store_that_is_away_is_waited_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    away, real = [3], TuneShelf.keep

    def keep(self: TuneShelf, *args: Any) -> int:
        if away[0]:
            away[0] -= 1
            raise StoreUnavailable("the store is away")
        return real(self, *args)

    monkeypatch.setattr(TuneShelf, "keep", keep)
    await shop.worker()
    done = await shop.over(await shop.order())
    assert (done.status, away[0]) == ("succeeded", 0)
    assert done.checkpoints[-1].step == STEPS


async def test_a_file_that_has_gone_fails_the_job(shop: Shop) -> None:
    await shop.worker()
    spec = await shop.orders.spec(fit=TuneFit(head="generation"))
    await shop.orders.checked(await shop.orders.add(spec), examples=1)
    done = await shop.over(spec.id)
    assert done.error is not None
    assert (done.status, done.error.code, done.error.param) == ("failed", "unknown_file", "training_file")


async def test_a_unit_that_fits_under_no_target_is_told_with_the_figures(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_course, "_UNFIT_S", 0.1)
    await shop.worker()
    shop.turn.stuck = (0.5, 0.01, 0.02)
    monkeypatch.setattr(FakeTurn, "_run", lambda self, job: asyncio.sleep(3600))
    done = await shop.over(await shop.order())
    assert done.error is not None
    assert (done.status, done.error.code) == ("failed", "conflict")
    assert "500 ms" in done.error.message
    assert "20 ms at most" in done.error.message


async def test_a_unit_that_only_passes_leave_no_time_for_waits_for_the_night(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_course, "_UNFIT_S", 0.0)
    await shop.worker()
    shop.turn.stuck = (0.5, 0.01, 0.6)
    monkeypatch.setattr(FakeTurn, "_run", lambda self, job: asyncio.sleep(3600))
    job = await shop.order()

    async def told() -> bool:
        return any("10 ms as long as they are so busy" in words for words in await shop.orders.said(job))

    await until(told, "it says why it waits")
    assert await shop.orders.status(job) == "running"
