"""The SDK's batches against the gateway's: the application on a broker in memory, and a worker that echoes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fmplex import (
    AsyncClient,
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    JobFailed,
    UnknownBatch,
    UnknownVfm,
)
from fmplex_broker.streams import connection
from tests.support.batch_runs import EchoWorker, echoing
from tests.support.waiting import until
from tests.unit.gateway.site import Site, look_often, site, spec


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    look_often(monkeypatch)
    async with site(tmp_path) as place:
        await place.serve(spec("echo", head={"kind": "features"}))
        yield place


@pytest.fixture
async def worker(place: Site) -> AsyncIterator[EchoWorker]:
    async with echoing(await place.worker("w2")) as worker:
        yield worker


@pytest.fixture
async def client(place: Site, worker: EchoWorker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    real = httpx.AsyncClient

    def connected(**options: Any) -> httpx.AsyncClient:
        return real(**options | {"transport": httpx.ASGITransport(place.app)})

    monkeypatch.setattr(httpx, "AsyncClient", connected)
    async with AsyncClient("http://gateway") as fm:
        yield fm


async def test_a_file_goes_out_and_its_results_come_back_in_order(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n\nfirst\r\nfail it\ncaf\xe9\n\n" + "пятая\n".encode() * 300)
    batch = await client.batches.submit(tmp_path / "a.txt", vfm="echo", metadata={"a": "b"})
    assert (await batch.wait(timeout=60)).metadata == {"a": "b"}
    first, failed, unread, *others = [result async for result in batch]
    assert (first.line, first.output, first.vfm, first.units) == (3, {"text": "first"}, "echo", 1)
    assert first.version == (await client.vfms.show("echo")).version
    assert (failed.line, failed.custom_id, failed.code, type(failed.error)) == (4, "line-4", "job_failed", JobFailed)
    assert (unread.line, unread.code, type(unread.error)) == (5, "invalid_json_line", InvalidInput)
    assert unread.error is not None
    assert "not UTF-8" in unread.error.message
    assert [(result.line, result.output) for result in others] == [(n, {"text": "пятая"}) for n in range(7, 307)]
    assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (303, 301, 2)


async def test_what_is_wrong_is_typed(client: AsyncClient) -> None:
    (unknown,) = [result async for result in await client.batches.submit(["a"], vfm="nobody")]
    assert type(unknown.error) is UnknownVfm
    for wrong in ({"completion_window": "1m"}, {"metadata": {"k" * 65: "v"}}):
        with pytest.raises(InvalidInput) as caught:
            await client.batches.submit(["a"], vfm="echo", **wrong)  # type: ignore[arg-type]
        assert (caught.value.field or "").partition(".")[0] in wrong
    with pytest.raises(UnknownBatch):
        await client.batches.get("batch_" + 24 * "0")


async def test_a_batch_is_cancelled(client: AsyncClient, worker: EchoWorker) -> None:
    worker.hold = lambda text: text.startswith("never")
    batch = await client.batches.submit([*["now"] * 10, *["never"] * 10], vfm="echo")

    async def some_are_answered() -> bool:
        return (await batch.refresh()).request_counts.completed == 10

    await until(some_are_answered, "ten are answered")
    assert (await batch.cancel()).status in ("cancelling", "cancelled")
    assert (await batch.wait(timeout=60)).status == "cancelled"
    found = [result async for result in batch]
    assert [result.output for result in found[:10]] == [{"text": "now"}] * 10
    assert [(type(result.error), result.code) for result in found[10:]] == [(Cancelled, "batch_cancelled")] * 10
    assert (await batch.cancel()).status == "cancelled"
    assert [b.id for b in await client.batches.list()] == [batch.id]


async def test_an_offline_job(client: AsyncClient, worker: EchoWorker) -> None:
    job = await client.enqueue("echo", "a text", offline=True, timeout=600_000)
    result = await job.result(timeout=60)
    assert (result.output, result.vfm, result.units) == ({"text": "a text"}, "echo", 1)
    assert worker.classes == {"offline": 1}
    with pytest.raises(JobFailed):
        await (await client.enqueue("echo", "fail", offline=True)).result(timeout=60)
    worker.hold = lambda text: text == "never"
    late = await client.enqueue("echo", "never", offline=True, timeout=0.5)
    with pytest.raises(DeadlineExceeded):
        await late.result(timeout=60)
