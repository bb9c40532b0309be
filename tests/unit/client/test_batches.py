"""`client.batches`: what is sent, what comes back and in which order, and what happens when answers are lost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fmplex.following
from fmplex import (
    AsyncClient,
    Batch,
    BatchResult,
    Cancelled,
    Client,
    Conflict,
    FmplexError,
    InvalidInput,
    TextTooLong,
    Unavailable,
)
from tests.support.batch_gateway import BatchGateway, batch_gateway
from tests.support.gateways import REFUSED

TEXTS = ["one", "zwei", REFUSED, "четыре"]


@pytest.fixture
def gateway() -> Iterator[BatchGateway]:
    with batch_gateway() as running:
        yield running


@pytest.fixture
def client(gateway: BatchGateway) -> Iterator[Client]:
    with Client(gateway.url) as fm:
        yield fm


def sent(gateway: BatchGateway, batch: Batch) -> list[Any]:
    """The lines of a batch's file, None for blank ones."""
    content = gateway.files[batch.info.input_file_id]
    return [json.loads(raw) if raw else None for raw in content.removesuffix(b"\n").split(b"\n")]


def test_a_list_becomes_a_file_of_requests(client: Client, gateway: BatchGateway) -> None:
    inputs = ["one", {"text": "a", "text_pair": "b"}, {"messages": [{"role": "user", "content": "hi"}]}]
    batch = client.batches.submit(
        (value for value in inputs), vfm="spam", params={"top_k": 2}, completion_window="7d", metadata={"who": "me"}
    )
    assert sent(gateway, batch) == [
        {
            "custom_id": f"line-{n}", "method": "POST", "url": "/v1/vfms/spam/infer",
            "body": {"inputs": [value], "params": {"top_k": 2}},
        }
        for n, value in enumerate(inputs, 1)
    ]  # fmt: skip
    info = batch.info
    assert (info.endpoint, info.completion_window, info.metadata) == ("/v1/vfms/spam/infer", "7d", {"who": "me"})
    assert (batch.id, batch.status, batch.counts.total) == ("batch_0000", "validating", 0)


def test_results_come_in_the_order_of_the_inputs(client: Client) -> None:
    batch = client.batches.submit(TEXTS, vfm="spam")
    found = list(batch)
    assert [(r.line, r.custom_id, r.output) for r in found] == [
        (1, "line-1", "one"), (2, "line-2", "zwei"), (3, "line-3", None), (4, "line-4", "четыре"),
    ]  # fmt: skip
    assert (found[0].vfm, found[0].version, found[0].units, found[0].error) == ("spam", "v1", 3, None)
    assert type(found[2].error) is TextTooLong
    assert (found[2].code, found[2].error.message, found[2].error.field) == ("text_too_long", "is refused", "inputs.0")
    assert (batch.status, batch.counts.completed, batch.counts.failed, batch.counts.total) == ("completed", 3, 1, 4)
    assert repr(list(batch)) == repr(found), "again"


async def test_the_awaited_client_does_the_same(gateway: BatchGateway, tmp_path: Path) -> None:
    async with AsyncClient(gateway.url) as fm:
        batch = await fm.batches.submit(TEXTS, vfm="spam")
        info = await batch.wait(progress=True)
        assert (info.status, batch.status) == ("completed", "completed")
        found = [result async for result in batch]
        assert [r.output for r in found] == ["one", "zwei", None, "четыре"]
        assert await batch.fetch(tmp_path / "out.jsonl") == 1
        again = await fm.batches.get(batch.id)
        assert repr([r async for r in again]) == repr(found)
        assert [b.id for b in await fm.batches.list()] == [batch.id]
        assert (await batch.cancel()).status == "completed", "it has ended"


def test_fetched_lines_are_those_of_infer(client: Client, tmp_path: Path) -> None:
    batch = client.batches.submit(TEXTS[1:3], vfm="spam")
    assert batch.fetch(tmp_path / "out.jsonl") == 1
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [
        {"line": 1, "custom_id": "line-1", "output": "zwei", "vfm": "spam", "version": "v1", "units": 3},
        {"line": 2, "custom_id": "line-2", "error": {"code": "text_too_long", "message": "is refused"}},
    ]


def test_requests_as_openai_has_them_go_as_they_are(client: Client, gateway: BatchGateway, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    request = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "bot", "messages": []},
    }
    path.write_bytes(b"\xef\xbb\xbf\r\nnot json\r\n" + json.dumps(request).encode() + b"\r\n")
    batch = client.batches.submit(path)
    assert gateway.files[batch.info.input_file_id] == path.read_bytes()
    assert (gateway.names[batch.info.input_file_id], batch.info.endpoint) == ("requests.jsonl", "/v1/chat/completions")
    bad, good = batch
    assert (bad.line, bad.custom_id, bad.code, type(bad.error)) == (2, None, "invalid_json_line", InvalidInput)
    assert (good.line, good.custom_id, good.output["choices"], good.vfm, good.units) == (3, "a", [], "bot", 7)
    with pytest.raises(InvalidInput, match="say what they are for"):
        client.batches.submit(path, vfm="spam")
    request["url"] = "/v1/vfms/one/infer"
    path.write_text(json.dumps(request))
    assert client.batches.submit(path).info.endpoint == "/v1/vfms/{name}/infer", "the others may be for other vFMs"


def test_a_batch_is_cancelled(client: Client, gateway: BatchGateway) -> None:
    gateway.stuck = True
    batch = client.batches.submit(TEXTS, vfm="spam")
    with pytest.raises(TimeoutError, match=r"batch_0000 has not ended within 0\.3 s; it goes on"):
        batch.wait(timeout=0.3)
    assert batch.status == "in_progress"
    assert batch.cancel().status == "cancelling"
    assert batch.wait().status == "cancelled"
    assert [(type(r.error), r.code) for r in batch] == [(Cancelled, "batch_cancelled")] * 4


def test_a_file_that_is_not_taken_is_told(client: Client, gateway: BatchGateway, tmp_path: Path) -> None:
    batch = client.batches.submit(TEXTS, vfm="spam")
    gateway.files[batch.info.input_file_id] = b"\n\n"
    assert batch.wait().status == "failed"
    assert [fault.code for fault in batch.info.faults] == ["empty_file"]
    with pytest.raises(InvalidInput, match="batch_0000 failed: empty_file: there is no line"):
        list(batch)
    with pytest.raises(InvalidInput):
        batch.fetch(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", [("POST", "/v1/files"), ("POST", "/v1/batches"), ("GET", "/v1/batches/batch_0000")])
def test_a_lost_answer_makes_no_second_batch(client: Client, gateway: BatchGateway, lost: tuple[str, str]) -> None:
    gateway.lost = [lost]
    batch = client.batches.submit(TEXTS, vfm="spam")
    assert len(list(batch)) == 4
    assert (list(gateway.batches), gateway.lost) == (["batch_0000"], [])


def test_a_gateway_that_is_away_for_a_while_ends_no_wait(
    client: Client, gateway: BatchGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = client.batches.submit(TEXTS, vfm="spam")
    gateway.lost = [("GET", "/v1/batches/batch_0000")] * 7
    assert batch.wait(timeout=60).status == "completed"
    monkeypatch.setattr(fmplex.following, "_AWAY_S", 0.0)
    gateway.lost = [("GET", "/v1/batches/batch_0001")] * 100
    with pytest.raises(Unavailable, match="does not answer"):
        client.batches.submit(TEXTS, vfm="spam").wait(timeout=60)


def test_a_download_that_breaks_off_is_gone_on_with(client: Client, gateway: BatchGateway) -> None:
    texts = [f"text {n}" for n in range(500)]
    batch = client.batches.submit(texts, vfm="spam")
    batch.wait()
    gateway.cuts = 4
    assert [result.output for result in batch] == texts
    assert gateway.cuts == 0


def test_batches_are_listed_newest_first(client: Client, gateway: BatchGateway) -> None:
    made = [client.batches.submit(["x"], vfm="spam").id for _ in range(3)]
    made += [
        gateway.create({"input_file_id": "f", "endpoint": "/v1/e", "completion_window": "24h"})["id"]
        for _ in range(230)
    ]
    assert [batch.id for batch in client.batches.list()] == made[::-1]
    assert [batch.id for batch in client.batches.list(limit=120)] == made[:-121:-1]
    assert client.batches.get(made[0]).wait().status == "completed"
    with pytest.raises(FmplexError, match="no such batch"):
        client.batches.get("batch_none")
    with pytest.raises(InvalidInput, match="a batch's id"):
        client.batches.get("")


def test_straight_to_the_broker_a_gateway_is_asked_for() -> None:
    def inputs() -> Iterator[str]:
        raise AssertionError("nothing is drawn")
        yield ""

    with Client("redis://127.0.0.1:1") as fm:
        for call in (lambda: fm.batches.submit(inputs(), vfm="v"), fm.batches.list, lambda: fm.batches.get("batch_1")):
            with pytest.raises(InvalidInput, match="connect with its http:// URL"):
                call()


def test_an_offline_job_is_a_batch_of_its_own(client: Client, gateway: BatchGateway) -> None:
    job = client.enqueue("spam", "hello", offline=True, timeout=90, top_k=1)
    result = job.result(timeout=30)
    assert (result.output, result.vfm, result.version, result.units) == ("hello", "spam", "v1", 3)
    assert (result.queue_ms, result.run_ms, result.load_ms) == (1.5, 2.5, 0.0)
    assert job.result() is not None
    (batch,) = client.batches.list()
    body = sent(gateway, batch)[0]["body"]
    assert 89_000 < body.pop("timeout_ms") <= 90_000
    assert body == {"inputs": ["hello"], "params": {"top_k": 1}}
    assert batch.info.completion_window == "5m"
    client.enqueue("spam", "hello", offline=True)
    client.enqueue("spam", "hello", offline=True, timeout=604_800)
    assert [b.info.completion_window for b in client.batches.list(limit=2)] == ["10080m", "24h"]
    with pytest.raises(TextTooLong, match="is refused"):
        client.enqueue("spam", REFUSED, offline=True).result()
    with pytest.raises(InvalidInput, match=r"between 0\.001 and 604800 seconds"):
        client.enqueue("spam", "hello", offline=True, timeout=604_801)


def test_an_offline_job_is_enqueued_once_by_its_key(client: Client, gateway: BatchGateway) -> None:
    gateway.lost = [("POST", "/v1/batches")]
    jobs = [client.enqueue("spam", "hello", offline=True, idempotency_key="k", timeout=60) for _ in range(2)]
    assert [job.result().output for job in jobs] == ["hello", "hello"]
    assert len(gateway.batches) == 1
    with pytest.raises(Conflict) as caught:
        client.enqueue("spam", "other", offline=True, idempotency_key="k")
    assert caught.value.field == "idempotency_key"


def test_an_offline_job_is_cancelled(client: Client, gateway: BatchGateway) -> None:
    gateway.stuck = True
    job = client.enqueue("spam", "hello", offline=True)
    with pytest.raises(TimeoutError):
        job.result(timeout=0.1)
    assert job.cancel() is True
    with pytest.raises(Cancelled):
        job.result()
    early = client.enqueue("spam", "hello", offline=True)
    assert early.cancel() is True
    with pytest.raises(Cancelled):
        early.result()
    gateway.stuck = False
    done = client.enqueue("spam", "hello", offline=True)
    done.result()
    assert done.cancel() is False


async def test_what_is_left_of_a_closed_client_says_so(gateway: BatchGateway) -> None:
    async with AsyncClient(gateway.url) as fm:
        job = await fm.enqueue("spam", "hello", offline=True)
        batch = await fm.batches.submit(["hello"], vfm="spam")
    for call in (job.result(), batch.wait(), batch.cancel()):
        with pytest.raises(Unavailable, match="this client is closed"):
            await call
    async with AsyncClient(gateway.url) as fm:
        assert (await (await fm.batches.get(batch.id)).wait()).status == "completed", "it went on"


def test_results_are_read_from_disk(client: Client, gateway: BatchGateway) -> None:
    """Leaving the results early is no leak: warnings are errors."""
    batch = client.batches.submit([f"text {n}" for n in range(100)], vfm="spam")
    began = time.monotonic()
    first = next(iter(batch))
    assert isinstance(first, BatchResult)
    assert (first.output, time.monotonic() - began < 60) == ("text 0", True)
