"""Whoever feeds a batch dies or stands still after any step of it, and another one goes on: the same files, little runs twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.files import FileStore
from fmplex_broker.specs.batches import BatchRecord, Order, new_batch_id
from fmplex_broker.specs.files import FileRecord, new_file_id
from fmplex_broker.specs.gateway import GatewaySpec
from fmplex_broker.streams import connection
from fmplex_broker.streams.batch_list import BatchList
from fmplex_broker.streams.connection import Scripts
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.keys import BATCHES
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.app import create_app
from fmplex_gateway.batches import calling, desk, parts
from fmplex_gateway.batches.feeder import Feeder
from tests.support.batch_runs import EchoWorker, Found, echoing, found, infer_line, infer_url, jsonl
from tests.support.waiting import until
from tests.unit.gateway.site import Site, look_often, spec

OWNER = "me"
WINDOW = 16  # lines
LINES = [infer_line(f"id-{i}", "fail" if i % 10 == 3 else f"text {i}") for i in range(90)]
LINES[40:40] = ["no json", "", '{"custom_id": "bad", "url": "/v1/elsewhere"}']
WANTED: tuple[Found, Found] = (
    {f"id-{i}": (200, [{"text": f"text {i}"}]) for i in range(90) if i % 10 != 3},
    {f"id-{i}": (500, "job_failed") for i in range(3, 90, 10)}
    | {None: (None, "invalid_json_line"), "bad": (None, "url_mismatch")},  # type: ignore[dict-item]
)


class Mortal(Scripts):
    """Scripts that a killed process cannot call any more, and one that stands still only when it goes on."""

    dead = False

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self, *args: Any, **more: Any) -> Any:
        await self.goes_on.wait()
        if self.dead:
            raise BrokerUnavailable("this process is dead")
        return await super().__call__(*args, **more)


class Gateway:
    """What of a gateway feeds batches; `kill` ends it as SIGKILL does: from then on nothing of it reaches broker or store; `stop`
    is SIGSTOP."""

    stopped = False

    def __init__(self, server: FakeServer, folder: Path) -> None:
        self.redis = FakeAsyncRedis(server=server, protocol=2)
        self.scripts = Mortal(self.redis, flags=False)
        self.queue = QueueClient(self.redis, scripts=self.scripts, spec_ttl_s=0)
        self.store = FileStore(str(folder / "store"))
        self.files = FileList(self.redis)
        self.batches = BatchList(self.redis, self.scripts)
        self.feeder = Feeder(self.queue, self.batches, self.files, self.store)
        self.strike = self.kill
        self.thread_goes_on = threading.Event()

    @property
    def dead(self) -> bool:
        return self.scripts.dead

    def kill(self) -> None:
        self.scripts.dead = True
        tasks = [self.feeder._task, *(task for _, task in self.feeder._courses.values())]
        for course, _ in self.feeder._courses.values():
            if course._feeding is not None:
                tasks += [task for opened in course._feeding.window._open.values() for task in opened.tasks]
                tasks.append(course._feeding._putting)
        for task in tasks:
            if task is not None:
                task.cancel()

    def stop(self) -> None:
        self.stopped = True
        self.scripts.goes_on.clear()
        self.thread_goes_on.clear()

    def go_on(self) -> None:
        self.scripts.goes_on.set()
        self.thread_goes_on.set()

    async def struck(self) -> None:
        self.strike()
        if self.dead:
            await asyncio.sleep(60)  # where it is cancelled
        await self.scripts.goes_on.wait()

    async def order(self) -> BatchRecord:
        file = new_file_id()
        with self.store.writing(file) as out:
            out.write(jsonl(LINES))
        record = FileRecord(
            id=file, owner=OWNER, bytes=1, created_at=1, expires_at=2, filename="a.jsonl", purpose="batch"
        )
        await self.files.add(record)
        return await self.batches.create(
            Order(id=new_batch_id(), owner=OWNER, endpoint=infer_url("echo"), input_file_id=file)
        )

    async def status(self, batch: BatchRecord) -> str:
        return (await self.batches.find(batch.order.id, OWNER)).status

    async def lapse(self, batch: BatchRecord) -> None:
        await self.redis.zadd(f"{BATCHES}batches-open", {batch.order.id: 1}, xx=True)

    def found(self, file: str | None) -> Found:
        if file is None:
            return {}
        with self.store.open(file) as content:
            return found(content.read())


@asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[tuple[Callable[[], Gateway], EchoWorker]]:
    """Serve a vFM; gives what makes gateways, and its worker."""
    server = FakeServer()
    gateways: list[Gateway] = []

    def made() -> Gateway:
        gateways.append(Gateway(server, folder))
        return gateways[-1]

    first = made()
    app = create_app(lambda: first.queue, GatewaySpec(), ArtifactStore(str(folder / "store")), [])
    place = Site(app, None, first.queue)  # type: ignore[arg-type]
    await place.serve(spec("echo", head={"kind": "features"}))
    async with echoing(await place.worker("w2")) as worker:
        yield made, worker
        for gateway in gateways:
            gateway.scripts.dead = False
            gateway.go_on()
            await gateway.feeder.close()
            await gateway.queue.close()
            await gateway.feeder.drop()


Wrap = Callable[[Any], Any]


def after(gateway: Gateway, times: int) -> Wrap:
    """Wrap something asynchronous so that the gateway is struck after it was done so many times."""
    count = 0

    def wrap(call: Any) -> Any:
        async def made(*args: Any, **more: Any) -> Any:
            nonlocal count
            result = await call(*args, **more)
            if args == ([],):  # nothing to trim
                return result
            count += 1
            if count == times:
                await gateway.struck()
            return result

        return made

    return wrap


def after_writing(gateway: Gateway, times: int, prefix: str) -> None:
    """Strike the gateway once it has written so many files whose name begins so. It is on a thread then."""
    loop, real, count = asyncio.get_running_loop(), gateway.store.writing, 0

    @contextmanager
    def writing(name: str) -> Any:
        nonlocal count
        with real(name) as file:
            yield file
        count += name.startswith(prefix)
        if name.startswith(prefix) and count == times and not gateway.dead:
            gateway.scripts.dead = gateway.strike == gateway.kill
            loop.call_soon_threadsafe(gateway.strike)
            if gateway.dead:
                raise BrokerUnavailable("killed")
            gateway.thread_goes_on.wait(30)

    gateway.store.writing = writing  # type: ignore[method-assign]


def at_read(gateway: Gateway, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, wrapped = calling.answer, after(gateway, times)(calling.answer)
    monkeypatch.setattr(
        calling, "answer", lambda queue, *rest: (wrapped if queue is gateway.queue else real)(queue, *rest)
    )


def at_append(gateway: Gateway, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = parts.Parts.add, 0

    def add(self: parts.Parts, answered: Any) -> None:
        nonlocal count
        if self._desk.queue is gateway.queue and gateway.dead:
            return
        real(self, answered)
        count += self._desk.queue is gateway.queue
        if count == times:
            count += 1
            gateway.strike()

    monkeypatch.setattr(parts.Parts, "add", add)


def at_put(gateway: Gateway, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after_writing(gateway, times, "batch_")


def at_record(gateway: Gateway, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.batches, "record", after(gateway, times)(gateway.batches.record))


def at_trim(gateway: Gateway, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.queue, "forget_results", after(gateway, times)(gateway.queue.forget_results))


def at_join(gateway: Gateway, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after_writing(gateway, times, "file-")


def at_publish(gateway: Gateway, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.files, "add", after(gateway, times)(gateway.files.add))


def at_move(gateway: Gateway, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.batches, "move", after(gateway, times)(gateway.batches.move))


def at_give_back(gateway: Gateway, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.batches, "give_back", after(gateway, times)(gateway.batches.give_back))


STEPS = [
    *((at_read, n) for n in (1, 2, 40)), *((at_append, n) for n in (1, 17, 50)), *((at_put, n) for n in (1, 2, 4)),
    *((at_record, n) for n in (1, 2, 3)), *((at_trim, n) for n in (1, 2, 3)), *((at_join, n) for n in (1, 2)),
    *((at_publish, n) for n in (1, 2)), *((at_move, n) for n in (1, 2, 3)), (at_give_back, 1),
]  # fmt: skip


STOPS = [
    (at_read, 2),
    (at_put, 2),
    (at_record, 2),
    (at_trim, 2),
    (at_join, 1),
    (at_publish, 2),
    (at_move, 2),
    (at_move, 3),
]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    look_often(monkeypatch)
    monkeypatch.setattr(desk, "WINDOW_LINES", WINDOW)
    monkeypatch.setattr(parts, "WINDOW_LINES", WINDOW)


async def check(gateway: Gateway, batch: BatchRecord, worker: EchoWorker, twice: int = 0) -> None:
    """Wait for the end of a batch; its files are what they must be, and no more lines than `twice` ran twice."""

    async def over() -> bool:
        return await gateway.status(batch) == "completed" and not await gateway.batches.count_open()

    await until(over, "the batch is completed", 30)
    await check_files(gateway, batch)
    again = {text: n for text, n in worker.ran.items() if n > 1 and text != "fail"}
    assert len(again) <= twice, f"ran again: {again}"
    assert len(gateway.store.names()) == 3


async def check_files(gateway: Gateway, batch: BatchRecord) -> None:
    async def over() -> bool:
        return await gateway.status(batch) == "completed"

    await until(over, "the batch is completed", 30)
    record = await gateway.batches.find(batch.order.id, OWNER)
    assert (record.total, record.completed, record.failed) == (92, 81, 11)
    assert (gateway.found(record.output_file_id), gateway.found(record.error_file_id)) == WANTED


@pytest.mark.parametrize(("kill", "times"), STEPS, ids=lambda p: getattr(p, "__name__", str(p)))
async def test_the_feeder_dies_after_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: Any, times: int
) -> None:
    async with fleet(tmp_path) as (gateway, worker):
        victim, heir = gateway(), gateway()
        kill(victim, times, monkeypatch)
        batch = await heir.order()
        victim.feeder.start()
        await until(lambda: victim.dead, "it is dead", 20)
        if await heir.status(batch) != "completed" or await heir.batches.count_open():
            await heir.lapse(batch)
        heir.feeder.start()
        await check(heir, batch, worker)


@pytest.mark.parametrize("early", [True, False], ids=["early", "late"])
@pytest.mark.parametrize(("stop", "times"), STOPS, ids=lambda p: getattr(p, "__name__", str(p)))
async def test_the_feeder_stands_still_after_a_step_and_goes_on_when_it_has_lost_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Any, times: int, early: bool
) -> None:
    async with fleet(tmp_path) as (gateway, worker):
        victim, heir = gateway(), gateway()
        victim.strike = victim.stop
        stop(victim, times, monkeypatch)
        batch = await heir.order()
        victim.feeder.start()
        await until(lambda: victim.stopped, "it stands still", 20)
        await heir.lapse(batch)
        heir.feeder.start()
        if early:
            await until(lambda: batch.order.id in heir.feeder._courses or worker.ran, "it was taken over", 20)
        else:
            await check(heir, batch, worker)
        victim.go_on()
        await check(heir, batch, worker, twice=WINDOW)
        await until(lambda: not victim.feeder._courses, "it knows that it has lost the batch", 20)
        again = await heir.order()
        worker.ran.clear()
        await check_files(heir, again)


async def test_the_broker_forgets_what_came_last(tmp_path: Path) -> None:
    """As after a machine's crash: its last second is gone. Parts of which it knows nothing count for nothing."""
    async with fleet(tmp_path) as (gateway, worker):
        feeder, real, puts = gateway(), QueueClient.forget_results, 0
        before: dict[bytes, bytes] = {}
        forgotten = False

        async def remember() -> None:
            """Keep all that the broker knows at one moment."""
            names = [name async for name in feeder.redis.scan_iter("*") if b"batch" in name or b":res:" in name]
            async with feeder.redis.pipeline() as pipe:
                for name in names:
                    pipe.dump(name)
                values = await pipe.execute()
            before.update({name: value for name, value in zip(names, values, strict=True) if value is not None})

        async def forget() -> None:
            async with feeder.redis.pipeline() as pipe:
                for name, value in before.items():
                    pipe.restore(name, 0, value, replace=True)
                await pipe.execute()
            await feeder.lapse(batch)

        async def forget_results(stored: Any) -> None:
            nonlocal puts, forgotten
            puts += bool(stored)  # without any it is another one who calls
            this = puts
            if this == 2 and stored:  # its part is in the store, and recorded
                await remember()
            await real(feeder.queue, stored)
            if this > 2 and stored and before and not forgotten:
                forgotten = True
                await forget()

        feeder.queue.forget_results = forget_results  # type: ignore[method-assign]
        batch = await feeder.order()
        feeder.feeder.start()
        await until(lambda: forgotten, "it has forgotten", 20)
        await check(feeder, batch, worker, twice=WINDOW)
