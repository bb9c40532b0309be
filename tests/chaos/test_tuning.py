"""Workers die, stand still and leave while they train: what comes of a job is what comes of it when nothing happens.

Broker and workers are real processes; what they train is a LoRA on a tiny BERT, whose units stand still or kill where a test
says (`tests/support/mortal.py`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import BrokerUnavailable, Conflict, UnknownVfm
from fmplex_broker.packages.artifacts import ArtifactStore, open_artifact
from fmplex_broker.packages.files import FileStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.fitting import LoraSpec
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.tune_records import TuneRecord
from fmplex_broker.specs.tuning import Hyperparameters, Publish, TuneFit
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from tests.contract.harness import connected
from tests.support.fleets import worker_ids
from tests.support.generation_fleet import in_hand
from tests.support.mortal import DEADLY, NAME, OPENING, STILL, Nursery, Points
from tests.support.tiny import save_model
from tests.support.tunes import Orders
from tests.support.tuning_data import jsonl
from tests.support.waiting import until
from tests.unit.tuning.learnable import labelled

LEASE_MS = 1500
PATIENT_MS = 300_000
LINES = labelled()[:40]
FIT = TuneFit(head="classification", lora=LoraSpec(r=2, dropout=0.1), patience=50)
HYPERPARAMETERS = Hyperparameters(n_epochs=12, batch_size=8)
KINDS = ("forward", "loss", "backward", "step", "check")
SERVED = "served"


@dataclass(frozen=True)
class Learnt:
    """What came of a job, but for its names."""

    files: dict[str, bytes]
    generation: int
    past: int
    tokens: int
    step: int
    best_step: int | None
    loss: float | None


class Place:
    """A broker, a store, and the processes of workers."""

    def __init__(self, folder: Path, nursery: Nursery, points: Points) -> None:
        self.folder, self.points = folder, points
        self.server = EmbeddedServer(folder / "broker")
        self.store = folder / "artifacts"
        self.workers: dict[str, int] = {}
        self.alone: Learnt | None = None
        self._nursery = nursery
        self._begun = 0

    def start(self) -> str:
        name = f"worker-{self._begun}"
        self._begun += 1
        self.workers[name] = self._nursery.fork(self.server.url, self.store, self.folder / f"{name}.log")
        return name

    def lives(self, name: str) -> bool:
        try:
            os.kill(self.workers[name], 0)
        except ProcessLookupError:
            return False
        return True

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def ids(self, name: str) -> list[str]:
        return worker_ids(self.log(name))

    def named(self, worker: str) -> str:
        """The process that serves under an id; empty: it has not said so yet."""
        return next((name for name in self.workers if worker in self.ids(name)), "")

    def restore(self) -> None:
        """Two workers, whatever came before."""
        self.workers = {name: pid for name, pid in self.workers.items() if self.lives(name)}
        while len(self.workers) < 2:
            self.start()

    async def gone(self, name: str) -> None:
        await until(lambda: not self.lives(name), f"{name} is gone")

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Let a worker stand still."""
        os.kill(self.workers[name], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.workers[name], signal.SIGCONT)

    def end(self) -> None:
        for name, pid in self.workers.items():
            if self.lives(name):
                os.kill(pid, signal.SIGKILL)


class Owner:
    """Who orders, asks, and calls what is served."""

    def __init__(self, place: Place, session: QueueClient) -> None:
        self.place, self.session = place, session
        self.orders = Orders(session.redis, session.scripts, NAME)

    async def order(self, name: str, **more: Any) -> str:
        given = {"fit": FIT, "hyperparameters": HYPERPARAMETERS, "publish": Publish(how="as", vfm=name)} | more
        spec = await self.orders.spec(**given)
        with FileStore(str(self.place.store)).writing(spec.training_file) as out:
            out.write(jsonl(*LINES))
        await self.orders.checked(await self.orders.add(spec), examples=len(LINES))
        return spec.id

    async def begun(self, name: str, step: int = 2, **more: Any) -> str:
        """Order a job whose units stand still from a step on, once a checkpoint of it is saved."""
        self.place.points.set(STILL, step)
        job = await self.order(name, **more)
        await self.saved(job, 0)
        return job

    async def find(self, job: str) -> TuneRecord:
        """Read its record, as soon as the broker answers."""

        async def look() -> TuneRecord | None:
            with suppress(BrokerUnavailable):
                return await self.orders.find(job, "me")
            return None

        record: TuneRecord = await until(look, "the broker answers")
        return record

    async def saved(self, job: str, step: int) -> int:
        """Wait for a checkpoint after a step, by whoever has the job now; return its step."""

        async def look() -> int | None:
            record = await self.find(job)
            assert not record.ended, record.error
            last = record.last
            return last.step if record.worker and last is not None and last.step > step else None

        found: int = await until(look, f"a checkpoint after step {step} is saved")
        return found

    async def holder(self, job: str, but: str = "") -> str:
        """The process that has a job, another one than `but`."""

        async def look() -> str | None:
            worker = (await self.find(job)).worker
            name = "" if worker is None else self.place.named(worker)
            return name if name not in ("", but) else None

        return str(await until(look, "somebody has the job"))

    async def over(self, job: str) -> TuneRecord:
        """The job once it has ended and nobody has it in hand."""

        async def look() -> TuneRecord | None:
            record = await self.find(job)
            return record if record.ended and record.worker is None else None

        record: TuneRecord = await until(look, "the job is over")
        return record

    async def learnt(self, job: str) -> Learnt:
        """What has come of a job that succeeds."""
        record = await self.over(job)
        assert (record.status, record.error) == ("succeeded", None), record.error
        assert record.vfm is not None
        now = await self.session.registry.show(record.vfm)
        assert (now.status, now.version) == ("serving", record.version)
        artifact = artifact_of(now.version)
        package = open_artifact(ArtifactStore(str(self.place.store)).get(artifact), artifact)
        files = {name: bytes(data) for name, data in package.files.items()}
        progress = record.progress
        return Learnt(
            files, now.generation, len(now.past), progress.tokens, progress.step, progress.best_step, progress.loss
        )

    async def alone(self) -> Learnt:
        """What comes of a job when nothing happens."""
        if self.place.alone is None:
            self.place.alone = await self.learnt(await self.order("alone"))
        return self.place.alone

    async def serves(self) -> None:
        """Let there be a vFM to call."""
        deployer = Deployer(self.session.registry, ArtifactStore(str(self.place.store)))
        with suppress(Conflict):
            await deployer.deploy(bare(VfmSpec(name=SERVED, backbone=NAME, head=Embedding())))

    async def said(self, job: str, words: str) -> None:
        async def look() -> bool:
            return any(words in one for one in await self.orders.said(job))

        await until(look, f"{words!r} is said")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("tuning")
    points = Points(folder / "points")
    with Nursery(save_model("bert", folder / "model"), folder / "points", LEASE_MS) as nursery:
        place = Place(folder, nursery, points)
        with place.server:
            yield place
            place.end()


@pytest.fixture
def place(running: Place) -> Iterator[Place]:
    running.restore()
    yield running
    running.points.clear_all()


@pytest.fixture
async def owner(place: Place) -> AsyncIterator[Owner]:
    """With two workers that serve, and no lease but theirs."""
    session = QueueClient.connect(place.server.url)

    async def whole() -> bool:
        assert all(place.lives(name) for name in place.workers), [place.log(name)[-2000:] for name in place.workers]
        ids = {place.ids(name)[-1] for name in place.workers if place.ids(name)}
        return len(ids) == 2 and ids == set(await session.registry.live_workers(NAME))

    await until(whole, "two workers serve")
    yield Owner(place, session)
    await session.close()


# ---- deaths ----


async def test_workers_die_in_units_of_every_kind(place: Place, owner: Owner) -> None:
    wanted = await owner.alone()
    still, step = 2, 0
    job = await owner.begun("units", still)
    for kind in KINDS:
        step = await owner.saved(job, step)
        victim = await owner.holder(job)
        place.points.set(kind)
        place.points.set(STILL, still := still + 5)  # an epoch has fewer steps, so an evaluation comes before that
        await place.gone(victim)
        place.restore()
    place.points.clear(STILL)
    assert await owner.learnt(job) == wanted
    assert (await owner.find(job)).deaths == len(KINDS)


@pytest.mark.parametrize("point", ["state", "package", "put", "offered", "finished"])
async def test_a_worker_dies_while_it_saves_or_publishes(place: Place, owner: Owner, point: str) -> None:
    """In the middle of a checkpoint, before it is told, before the offer, before the end is told, and then."""
    wanted = await owner.alone()
    job = await owner.begun(point)
    victim = await owner.holder(job)
    place.points.set(point)
    place.points.clear(STILL)
    await place.gone(victim)
    assert await owner.learnt(job) == wanted


async def test_who_stood_still_past_its_lease_saves_nothing_more(place: Place, owner: Owner) -> None:
    wanted = await owner.alone()
    job = await owner.begun("still")
    old = await owner.holder(job)
    before = place.ids(old)
    with place.frozen(old):
        await owner.holder(job, but=old)
        place.points.clear(STILL)
        assert await owner.learnt(job) == wanted
        done = await owner.find(job)
    await until(lambda: len(place.ids(old)) > len(before), "it begins again under a new id")
    assert await owner.find(job) == done
    assert await owner.learnt(job) == wanted


# ---- what is away ----


async def test_the_broker_restarts_meanwhile(place: Place, owner: Owner) -> None:
    wanted = await owner.alone()
    job = await owner.begun("restart")
    place.server.kill()
    place.points.clear(STILL)
    place.server.start()
    await connected(owner.session.redis)
    assert await owner.learnt(job) == wanted
    assert (await owner.find(job)).deaths == 0


async def test_the_store_is_away_meanwhile(place: Place, owner: Owner) -> None:
    wanted = await owner.alone()
    job = await owner.begun("away")
    away = place.store.rename(place.folder / "elsewhere")
    place.store.touch()  # no folder
    place.points.clear(STILL)
    await owner.said(job, "Waiting: the artifact store")
    record = await owner.find(job)
    assert (record.status, record.progress.step) == ("running", wanted.step), "it has gone on to its end"
    place.store.unlink()
    away.rename(place.store)
    assert await owner.learnt(job) == wanted


# ---- what is asked ----


async def test_a_worker_that_drains_hands_its_job_on(place: Place, owner: Owner) -> None:
    wanted = await owner.alone()
    job = await owner.begun("drained")
    old = await owner.holder(job)
    os.kill(place.workers[old], signal.SIGTERM)
    place.points.set(STILL, 20)
    await owner.holder(job, but=old)
    await place.gone(old)
    assert "has left" in place.log(old)
    place.points.clear(STILL)
    assert await owner.learnt(job) == wanted
    record = await owner.find(job)
    assert (record.deaths, record.attempts) == (0, 0)


async def test_a_job_is_paused_resumed_and_cancelled(place: Place, owner: Owner) -> None:
    wanted = await owner.alone()
    job = await owner.begun("asked")
    assert (await owner.orders.ask(job, "me", "pause")).status == "paused"
    with pytest.raises(Conflict, match="is paused"):
        await owner.orders.ask(job, "me", "pause")
    place.points.set(STILL, 20)
    await until(lambda: _free(owner, job), "it is given back")
    paused = await owner.find(job)
    assert (paused.status, paused.attempts, paused.deaths) == ("paused", 0, 0)
    assert paused.last is not None
    assert paused.last.step >= 2
    await owner.orders.ask(job, "me", "resume")
    await owner.holder(job)
    place.points.clear(STILL)
    assert await owner.learnt(job) == wanted
    for wish in ("pause", "resume", "cancel"):
        with pytest.raises(Conflict, match="is succeeded"):
            await owner.orders.ask(job, "me", wish)  # type: ignore[arg-type]


async def _free(owner: Owner, job: str) -> bool:
    return (await owner.find(job)).worker is None


@pytest.mark.parametrize("state", ["opening", "running", "paused"])
async def test_cancelled_is_at_once(place: Place, owner: Owner, state: str) -> None:
    place.points.set(OPENING if state == "opening" else STILL)
    job = await owner.order(f"cancelled-{state}")
    holder = await owner.holder(job)
    ids = place.ids(holder)
    if state == "paused":
        await owner.orders.ask(job, "me", "pause")
    for _ in range(2):
        assert (await owner.orders.ask(job, "me", "cancel")).status == "cancelled"
    if state != "opening":
        place.points.clear(STILL)
    await until(lambda: _free(owner, job), "it is given back")
    assert place.ids(holder) == ids, "its worker serves on"
    place.points.clear(OPENING)
    with pytest.raises(Conflict, match="is cancelled"):
        await owner.orders.ask(job, "me", "resume")
    with pytest.raises(UnknownVfm):
        await owner.session.registry.show(f"cancelled-{state}")


async def test_the_vfm_to_update_is_removed_meanwhile(place: Place, owner: Owner) -> None:
    deployer = Deployer(owner.session.registry, ArtifactStore(str(place.store)))
    await deployer.deploy(bare(VfmSpec(name="doomed", backbone=NAME, head=Embedding())))
    now = await owner.session.registry.show("doomed")
    publish = Publish(how="update", vfm="doomed", generation=now.generation)
    job = await owner.begun("doomed", publish=publish)
    await owner.session.registry.remove("doomed")
    place.points.clear(STILL)
    done = await owner.over(job)
    assert (done.status, done.vfm, done.version, done.error) == ("succeeded", None, None, None)
    await owner.said(job, "Not published: ")
    assert done.checkpoints
    with pytest.raises(UnknownVfm):
        await owner.session.registry.show("doomed")


# ---- a job that kills ----


async def test_a_job_that_kills_its_workers_harms_nobody_else_and_fails(place: Place, owner: Owner) -> None:
    """It dies of its first unit, whoever runs that. While there is anything else in hand nobody tries a second time."""
    await owner.serves()
    place.points.set(STILL)
    job = await owner.order("deadly")
    first = await owner.holder(job)
    (second,) = place.workers.keys() - {first}
    texts = ["the cat sat on the mat"] * 60
    with place.frozen(second):
        pending = await owner.session.submit(SERVED, texts, timeout_ms=PATIENT_MS)

        async def has() -> bool:
            return (await in_hand(owner.session, [SERVED], NAME))[place.ids(first)[-1]] > 0

        await until(has, "the worker that trains has requests in hand")
    place.points.set(DEADLY)
    place.points.clear(STILL)
    await place.gone(first)
    over = asyncio.Event()
    calling = asyncio.create_task(_call(owner, texts, over))
    await owner.said(job, "Waiting: a worker has died of it; it goes on at one that has nothing else in hand")
    replies = [await one.result() for one in pending]
    assert place.lives(second)
    assert (await owner.find(job)).deaths == 1
    over.set()
    replies += await calling
    assert {type(reply.error) for reply in replies} == {type(None)}
    await place.gone(second)
    place.restore()
    done = await _fails(place, owner, job)
    assert done.error is not None
    assert (done.status, done.error.code, done.deaths, done.vfm) == ("failed", "poisoned", 3, None)
    assert [key async for key in owner.session.redis.scan_iter("*dead:*")] == []
    place.points.clear(DEADLY)
    assert await owner.learnt(await owner.order("after")) == await owner.alone()
    more = await owner.session.submit(SERVED, texts[:1], timeout_ms=PATIENT_MS)
    assert (await more[0].result()).error is None


async def _call(owner: Owner, texts: list[str], over: asyncio.Event) -> list[Any]:
    """Call, so that two workers always have something in hand."""
    replies: list[Any] = []
    waiting = [await owner.session.submit(SERVED, texts * 4, timeout_ms=PATIENT_MS) for _ in range(4)]
    while waiting:
        replies += [await one.result() for one in waiting.pop(0)]
        if not over.is_set():
            waiting.append(await owner.session.submit(SERVED, texts * 4, timeout_ms=PATIENT_MS))
    return replies


async def _fails(place: Place, owner: Owner, job: str) -> TuneRecord:
    """Start workers anew until a job has ended."""

    async def look() -> TuneRecord | None:
        place.restore()
        record = await owner.find(job)
        return record if record.ended else None

    record: TuneRecord = await until(look, "the job has failed")
    return record
