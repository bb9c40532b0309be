"""What goes wrong while a worker trains: losses that are no numbers, too little memory. Its owner is told, what it serves is not
touched, and its next job is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fmplex_broker.packages.archive import unpack
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.checkpoints import CheckpointStore
from fmplex_broker.packages.files import FileStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.fitting import LoraSpec
from fmplex_broker.specs.fleet import BackboneSpec, TuningSpec, WorkerSpec
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.tune_records import TuneRecord
from fmplex_broker.specs.tuning import Hyperparameters, Publish, TuneFit
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from fmplex_worker.host import training as training_task
from fmplex_worker.host import tune_checkpoints, tune_course
from fmplex_worker.host.service import Worker
from fmplex_worker.tuning import descent
from fmplex_worker.tuning.head_objective import HeadObjective
from fmplex_worker.tuning.opening import open_run
from fmplex_worker.tuning.optimizer import Optimizer
from tests.support.tiny import NAME, save_model
from tests.support.tunes import Orders
from tests.support.tuning_data import jsonl
from tests.support.waiting import until
from tests.unit.tuning.learnable import labelled

pytestmark = pytest.mark.long
DEADLINE_S = 60
LINES = labelled()[:40]
FIT = TuneFit(head="classification", lora=LoraSpec(r=2), patience=50)
WORKER = WorkerSpec(device="cpu", threads=1, tuning=TuningSpec(enabled=True))


class Shop:
    """A worker that trains, and who orders."""

    def __init__(self, session: QueueClient, store: ArtifactStore) -> None:
        self.session, self.store = session, store
        self.orders = Orders(session.redis, session.scripts, NAME)

    async def done(self, name: str, **more: Any) -> TuneRecord:
        """Order a job of 24 steps, and wait for its end."""
        given: dict[str, Any] = {"fit": FIT, "hyperparameters": Hyperparameters(n_epochs=8, batch_size=8)}
        spec = await self.orders.spec(**given, publish=Publish(how="as", vfm=name), **more)
        with FileStore(self.store.url).writing(spec.training_file) as out:
            out.write(jsonl(*LINES))
        await self.orders.checked(await self.orders.add(spec), examples=len(LINES))

        async def over() -> TuneRecord | None:
            record = await self.orders.find(spec.id, "me")
            return record if record.ended and record.worker is None else None

        record: TuneRecord = await until(over, "the job is over")
        return record

    async def warned(self, job: TuneRecord) -> list[str]:
        """What its owner was warned of, the oldest first."""
        events, _ = await self.orders.events(job.spec.id, "me", 1000, oldest_first=True)
        return [event.message for event in events if event.level == "warn"]

    async def serves_on(self) -> None:
        """What was served is served, and the next job is done."""
        (pending,) = await self.session.submit("served", ["the cat sat"])
        assert (await asyncio.wait_for(pending.result(), DEADLINE_S)).error is None
        assert (await self.done("after")).status == "succeeded"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> BackboneSpec:
    model = save_model("bert", tmp_path_factory.mktemp("bert"))
    return BackboneSpec(name=NAME, model=str(model), pass_units=256, worker=WORKER)


@pytest.fixture(scope="module")
def engine(backbone: BackboneSpec) -> PackedEngine:
    return open_engine(backbone, WORKER, open_run)


@pytest.fixture
async def shop(
    backbone: BackboneSpec, engine: PackedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shop]:
    for module, name in ((tune_course, "SAVE_S"), (training_task, "_CLAIM_S"), (tune_checkpoints, "_LEAST_S")):
        monkeypatch.setattr(module, name, 0.05)
    with EmbeddedServer() as server:
        store = ArtifactStore(str(tmp_path / "store"))
        worker = Worker(server.url, backbone, WORKER, engine, store)
        running = asyncio.create_task(worker.run())
        await asyncio.wait_for(worker.ready.wait(), DEADLINE_S)
        session = QueueClient.connect(server.url)
        await Deployer(session.registry, store).deploy(bare(VfmSpec(name="served", backbone=NAME, head=Embedding())))
        yield Shop(session, store)
        worker.stop()
        await asyncio.wait_for(running, DEADLINE_S)
        await session.close()


NAN = float("nan")


def spoil(monkeypatch: pytest.MonkeyPatch, how: Callable[[int, int, int], float]) -> None:
    """Multiply losses: `how(step, call, tokens)` says by what, or raises."""
    real, calls = HeadObjective.loss, [0]

    def loss(self: HeadObjective, part: Sequence[int], hidden: Tensor, key: Any) -> Tensor:
        calls[0] += 1
        return how(key.step, calls[0], len(hidden)) * real(self, part, hidden, key)

    monkeypatch.setattr(HeadObjective, "loss", loss)


async def test_a_loss_that_is_no_number_costs_its_step(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda step, *_: NAN if step == 4 else 1.0)
    job = await shop.done("nan")
    assert (job.status, job.vfm, job.progress.step) == ("succeeded", "nan", 24)
    assert await shop.warned(job) == ["step 5 was dropped: its loss or its gradients are not finite"]


async def test_three_in_a_row_go_back_at_half_the_rate(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = Optimizer.step

    def step(self: Optimizer, number: int) -> None:
        rates.append(0.5 if self.halved else 1.0)
        real(self, number)

    monkeypatch.setattr(Optimizer, "step", step)
    monkeypatch.setattr(descent, "NOTED_EVERY", 1)
    spoil(monkeypatch, lambda _step, call, _tokens: NAN if 8 <= call <= 10 else 1.0)
    job = await shop.done("thrice")
    assert (job.status, job.progress.step) == ("succeeded", 24)
    *dropped, back = await shop.warned(job)
    assert [words.split(":")[0] for words in dropped] == [f"step {n} was dropped" for n in (8, 9, 10)]
    assert back == "back to step 7, at half the learning rate"
    assert rates == [1.0] * 7 + [0.5] * 17
    assert job.progress.tokens == (await shop.done("plain")).progress.tokens, "each step counts once"


async def test_what_diverges_at_half_the_rate_too_fails(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(descent, "NOTED_EVERY", 1)
        spoil(patch, lambda step, *_: NAN if step >= 7 else 1.0)
        job = await shop.done("diverges")
    assert job.error is not None
    assert (job.status, job.vfm, job.error.code, job.error.param) == (
        "failed", None, "non_finite_output", "fit.learning_rate",
    )  # fmt: skip
    assert "also at half the rate" in job.error.message
    assert sum("at half the learning rate" in words for words in await shop.warned(job)) == 1
    assert job.last is not None
    assert job.last.step == 7, "what was learnt before can be deployed"
    kept = unpack(CheckpointStore(shop.store.url).get(job.spec.id, job.last.name, "package"))
    assert kept.spec.name == "diverges"
    await shop.serves_on()


async def test_too_little_memory_halves_micro_batches(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = await shop.done("wide")

    def narrow(_step: int, _call: int, tokens: int) -> float:
        if tokens > 30:
            raise torch.OutOfMemoryError("no room")
        return 1.0

    spoil(monkeypatch, narrow)
    job = await shop.done("narrow")
    assert (job.status, job.progress.tokens) == ("succeeded", wide.progress.tokens)
    assert job.progress.loss == pytest.approx(wide.progress.loss, rel=1e-3)
    assert job.deaths == job.attempts == 0


@pytest.mark.parametrize("where", ["loss", "step", "opening"])
async def test_what_fits_nowhere_fails(shop: Shop, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def no_room(*_: Any) -> float:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patch:
        if where == "loss":
            spoil(patch, no_room)
        elif where == "step":
            patch.setattr(Optimizer, "step", no_room)
        else:
            patch.setattr("fmplex_worker.tuning.opening.HeadCourse", no_room)
        job = await shop.done("nowhere")
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "job_failed")
    assert "does not fit into the device's memory" in job.error.message
    await shop.serves_on()
