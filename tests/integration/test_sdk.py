"""What a program does with the SDK, through a gateway and straight to the broker."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from fmplex import (
    AsyncClient,
    Cancelled,
    Client,
    Conflict,
    DeadlineExceeded,
    FmplexError,
    QueueFull,
    RateLimited,
    Result,
    TextTooLong,
    TooLarge,
)
from fmplex.local import LocalFleet
from tests.integration.conftest import TASKS, TEXTS
from tests.support.broker import Broker
from tests.support.fleets import frozen
from tests.support.outputs import difference
from tests.support.waiting import until, wait_until

NewVfm = Callable[..., str]


def worker_stopped(fleet: LocalFleet) -> AbstractContextManager[None]:
    """The only worker stands still: what is sent waits in the queue."""
    return frozen(fleet.processes["worker-0"])


# --- calls -----------------------------------------------------------------------------------------------------------


async def test_one_input_gives_one_result_and_a_list_gives_a_list(
    client: AsyncClient, references: dict[str, list[Any]]
) -> None:
    one = await client.infer("stars", TEXTS[0])
    assert difference(one.output, references["stars"][0]) <= 1e-5
    assert one.version == (await client.vfms.show("stars")).version
    many = await client.infer("stars", list(TEXTS))
    assert [difference(r.output, w) <= 1e-5 for r, w in zip(many, references["stars"], strict=True)] == [True] * len(
        TEXTS
    )
    assert len(await client.infer("stars", [TEXTS[0]])) == 1


async def test_a_result_is_the_same_through_a_gateway_and_straight_to_the_streams(fleet: LocalFleet) -> None:
    """A call that is repeated under its key has the first one's results, whichever way it comes."""
    async with AsyncClient(fleet.gateway_url, retries=0) as http, AsyncClient(fleet.broker_url, retries=0) as direct:
        for name, task in TASKS.items():
            version = (await http.vfms.show(name)).version
            assert await http.vfms.show(name) == await direct.vfms.show(name)
            results = await http.infer(name, list(task.inputs), idempotency_key="both-ways")
            assert await direct.infer(name, list(task.inputs), idempotency_key="both-ways") == results
            for result in results:
                assert (result.vfm, result.version) == (name, version)
                assert (result.units > 0, result.queue_ms >= 0, result.run_ms > 0, result.load_ms >= 0) == (True,) * 4
        handle = await direct.enqueue("stars", TEXTS[0], idempotency_key="both-ways-alone")
        assert await handle.result(90) == await http.infer("stars", TEXTS[0], idempotency_key="both-ways-alone")


async def test_a_result_tells_of_the_wait_for_a_worker(fleet: LocalFleet, client: AsyncClient, new_vfm: NewVfm) -> None:
    name = new_vfm(rank=2)
    short, long = await client.infer(name, ["text", "text " * 100])
    assert long.units > 100 > short.units
    with worker_stopped(fleet):
        handle = await client.enqueue(name, "a text")
        with pytest.raises(TimeoutError):
            await handle.result(timeout=0.3)
    result = await handle.result(timeout=90)
    assert result.queue_ms > 200


async def test_embed_gives_plain_lists(client: AsyncClient) -> None:
    vectors = await client.embed("embed", list(TEXTS), dimensions=8)
    assert [len(v) for v in vectors] == [8] * len(TEXTS)
    assert all(math.hypot(*v) == pytest.approx(1, abs=1e-5) for v in vectors)


async def test_two_thousand_and_forty_eight_inputs_are_one_call(fleet: LocalFleet) -> None:
    async with AsyncClient(fleet.gateway_url) as client:
        results = await client.infer("embed", [f"text number {i}" for i in range(2048)], dimensions=4)
    assert len(results) == 2048
    assert len({tuple(r.output["embedding"].tolist()) for r in results}) > 2000


async def test_map_keeps_the_order_and_reads_no_further_ahead_than_its_window(client: AsyncClient) -> None:
    read, got = 0, 0
    furthest = 0

    def source() -> Iterator[str]:
        nonlocal read
        for i in range(400):
            read += 1
            yield f"{'word ' * (i % 7)} text {i}"

    outputs = []
    async for result in client.map("stars", source(), window=64):
        furthest = max(furthest, read - got)
        got += 1
        outputs.append(result.output["value"])
    assert len(outputs) == 400
    assert furthest <= 64 + 32, "about a window"
    for i in (0, 31, 32, 200, 399):
        alone = await client.infer("stars", f"{'word ' * (i % 7)} text {i}")
        assert outputs[i] == pytest.approx(alone.output["value"], abs=1e-5)


async def test_map_stops_at_the_first_error_and_names_it(client: AsyncClient) -> None:
    texts = [f"text {i}" for i in range(100)]
    texts[70] = "word " * 300
    seen: list[Result] = []

    async def collect() -> None:
        async for result in client.map("embed", texts, window=32):
            seen.append(result)

    with pytest.raises(TextTooLong):
        await collect()
    assert len(seen) == 64, "the whole chunks before it"


def test_map_can_be_left_half_way(fleet: LocalFleet, url: str) -> None:
    with Client(url) as client:
        results = client.map("embed", (f"text {i}" for i in range(10_000)), window=32)
        next(results)
        results.close()
        assert client.infer("embed", "still here").output


def test_map_draws_a_bar_when_asked(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(url) as client:
        assert len(list(client.map("embed", list(TEXTS), progress=True))) == len(TEXTS)
        assert "embed" in capsys.readouterr().out
        assert len(list(client.map("embed", list(TEXTS)))) == len(TEXTS)
        assert capsys.readouterr().out == ""


def test_one_client_serves_many_threads(url: str, references: dict[str, list[Any]]) -> None:
    wrong: list[str] = []

    def work(client: Client, name: str) -> None:
        for _ in range(3):
            for value, wanted in zip(TASKS[name].inputs, references[name], strict=True):
                if difference(client.infer(name, value).output, wanted) > 1e-5:
                    wrong.append(name)

    with Client(url) as client:
        threads = [threading.Thread(target=work, args=(client, name)) for name in TASKS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


# --- jobs ------------------------------------------------------------------------------------------------------------


async def test_a_handle_gives_the_result_when_it_is_there(
    fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm(rank=2)
    with worker_stopped(fleet):
        handle = await client.enqueue(name, "a text")
        await until(lambda: broker.depth(name) == 1, "the job is queued")
        for _ in range(2):
            with pytest.raises(TimeoutError, match="goes on"):
                await handle.result(timeout=0.05)
    result = await handle.result(timeout=90)
    assert (await handle.result()).output == result.output, "and again"
    assert difference(result.output, (await client.infer(name, "a text")).output) <= 1e-5


async def test_a_job_that_is_cancelled_before_it_ran_is_gone(
    fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm()
    with worker_stopped(fleet):
        handle = await client.enqueue(name, "a text")
        other = await client.enqueue(name, "another")
        await until(lambda: broker.depth(name) == 2, "both jobs are queued")
        assert await handle.cancel()
        with pytest.raises(Cancelled):
            await handle.result(timeout=90)
        await until(lambda: broker.depth(name) == 1, "the job has left the queue")
    assert (await other.result(timeout=90)).output


async def test_what_a_caller_stops_waiting_for_leaves_the_queue(
    fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm()
    with worker_stopped(fleet):
        call = asyncio.create_task(client.infer(name, [f"text {i}" for i in range(100)]))
        await until(lambda: broker.depth(name) == 100, "the jobs are queued")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: broker.depth(name) == 0, "the jobs have left the queue")


@pytest.mark.parametrize("path", ["infer", "embeddings"])
def test_a_client_that_hangs_up_takes_its_jobs_with_it(
    fleet: LocalFleet, broker: Broker, new_vfm: NewVfm, path: str
) -> None:
    name = new_vfm()
    texts = [f"text {i}" for i in range(200)]
    calls = {
        "infer": (f"/v1/vfms/{name}/infer", {"inputs": texts}),
        "embeddings": ("/v1/embeddings", {"model": name, "input": texts}),
    }
    where, body = calls[path]
    with worker_stopped(fleet), httpx.Client(base_url=fleet.gateway_url) as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post(where, json=body, timeout=httpx.Timeout(30, read=2))
        wait_until(lambda: broker.depth(name) == 0, "the jobs have left the queue")


async def test_a_key_runs_a_job_once(fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm) -> None:
    name = new_vfm()
    with worker_stopped(fleet):
        first = await client.enqueue(name, "a text", idempotency_key="k")
        await until(lambda: broker.depth(name) == 1, "the job is queued")
        second = await client.enqueue(name, "a text", idempotency_key="k")
        async with AsyncClient(fleet.broker_url) as elsewhere:
            third = await elsewhere.enqueue(name, "a text", idempotency_key="k")
            with pytest.raises(Conflict, match="idempotency key"):
                await elsewhere.infer(name, "another text", idempotency_key="k")
            other = await client.enqueue(name, "another text", idempotency_key="another")
            await until(lambda: broker.depth(name) == 2, "the other job is queued")
            everyone = asyncio.gather(*(h.result(timeout=120) for h in (first, second, third, other)))
            await asyncio.sleep(0)
            assert broker.depth(name) == 2, "three callers, one job"
            fleet.processes["worker-0"].send_signal(signal.SIGCONT)
            results = await everyone
    assert results[0].output == results[1].output == results[2].output
    assert results[3].output != results[0].output
    again = await client.infer(name, "a text", idempotency_key="k")
    assert again.output == results[0].output, "the stored result"


async def test_giving_up_does_not_end_the_job_of_another_caller(
    fleet: LocalFleet, client: AsyncClient, new_vfm: NewVfm, broker: Broker
) -> None:
    name = new_vfm()
    with worker_stopped(fleet):
        mine = await client.enqueue(name, "a text", idempotency_key="shared")
        await until(lambda: broker.depth(name) == 1, "the job is queued")
        async with AsyncClient(fleet.broker_url) as elsewhere:
            theirs = await elsewhere.enqueue(name, "a text", idempotency_key="shared")
            await mine.cancel()
            fleet.processes["worker-0"].send_signal(signal.SIGCONT)
            assert (await theirs.result(timeout=90)).output


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_a_deadline_that_passes_is_an_error_and_leaves_nothing(
    fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm()
    with worker_stopped(fleet):
        with pytest.raises(DeadlineExceeded):
            await client.infer(name, ["a text", "another"], timeout=0.01)
        await until(lambda: broker.depth(name) == 0, "the jobs have left the queue")
    assert (await client.infer(name, "a text")).output


async def test_the_worker_does_not_run_what_is_too_late(
    fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm()
    with worker_stopped(fleet):
        handle = await client.enqueue(name, "a text", timeout=0.3)
        await until(lambda: broker.depth(name) == 1, "the job is queued")
        with pytest.raises(TimeoutError):
            await handle.result(timeout=0.31)
    with pytest.raises(DeadlineExceeded):
        await handle.result(timeout=90)
    await until(lambda: broker.depth(name) == 0, "nothing is left")


def test_a_deadline_is_504_over_http(fleet: LocalFleet, http: httpx.Client, new_vfm: NewVfm) -> None:
    name = new_vfm(slo={"deadline_ms": 20})
    with worker_stopped(fleet):
        response = http.post(f"/v1/vfms/{name}/infer", json={"inputs": ["x"]})
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_full_queue_says_when_to_come_back(
    fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm(limits={"max_pending": 3})
    with worker_stopped(fleet):
        handles = [await client.enqueue(name, f"text {i}") for i in range(3)]
        await until(lambda: broker.depth(name) == 3, "the queue is full")
        with pytest.raises(QueueFull, match="full") as caught:
            await client.infer(name, "one too many")
        assert caught.value.retry_after > 0
        with httpx.Client(base_url=fleet.gateway_url) as http:
            response = await asyncio.to_thread(http.post, f"/v1/vfms/{name}/infer", json={"inputs": ["x"]})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
    assert all([(await handle.result(timeout=90)).output for handle in handles])


async def test_a_call_larger_than_the_queue_leaves_nothing_behind(
    fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm(limits={"max_pending": 10})
    with pytest.raises(TooLarge, match=r"11 inputs.*holds 10; split"):
        await client.infer(name, [f"text {i}" for i in range(11)])
    with worker_stopped(fleet):
        first = asyncio.create_task(client.infer(name, [f"text {i}" for i in range(6)]))
        await until(lambda: broker.depth(name) == 6, "the first call is queued")
        with pytest.raises(QueueFull):
            await client.infer(name, [f"text {i}" for i in range(6)])
        await until(lambda: broker.depth(name) == 6, "nothing of the other is left")
    assert len(await first) == 6
    assert len(await client.infer(name, [f"text {i}" for i in range(10)])) == 10


async def test_a_patient_client_waits_out_a_full_queue(
    fleet: LocalFleet, url: str, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm(limits={"max_pending": 1})
    async with AsyncClient(url, retries=60) as patient:
        with worker_stopped(fleet):
            first = await patient.enqueue(name, "first")
            await until(lambda: broker.depth(name) == 1, "the queue is full")
            second = asyncio.create_task(patient.infer(name, "second"))
            done, _ = await asyncio.wait({second}, timeout=0.5)
            assert not done
        assert (await second).output
        assert (await first.result()).output


async def test_a_rate_holds_a_vfm_back_and_says_for_how_long(client: AsyncClient, new_vfm: NewVfm) -> None:
    name = new_vfm(limits={"rate": 20.0})
    assert len(await client.infer(name, ["this is about ten tokens, and more than that"] * 10)) == 10
    with pytest.raises(RateLimited, match="over its rate") as caught:
        await client.infer(name, "one more")
    assert 0 < caught.value.retry_after < 60
    assert (await client.infer("embed", "others are not held back")).output


# --- offline ---------------------------------------------------------------------------------------------------------


async def test_offline_jobs_are_served_from_spare_capacity(fleet: LocalFleet, references: dict[str, list[Any]]) -> None:
    async with AsyncClient(fleet.broker_url) as client:
        handles = [await client.enqueue("stars", text, offline=True) for text in TEXTS * 4]
        assert (await client.infer("stars", TEXTS[0])).output, "and the others go first"
        results = [await handle.result(timeout=120) for handle in handles]
    wanted = references["stars"] * 4
    assert all(difference(r.output, w) <= 1e-5 for r, w in zip(results, wanted, strict=True))


async def test_offline_jobs_go_through_a_gateway_too(fleet: LocalFleet) -> None:
    async with AsyncClient(fleet.gateway_url) as client:
        job = await client.enqueue("stars", TEXTS[0], offline=True)
        assert difference((await job.result(timeout=60)).output, (await client.infer("stars", TEXTS[0])).output) <= 1e-5


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_closing_a_client_ends_what_waits(fleet: LocalFleet, url: str, broker: Broker, new_vfm: NewVfm) -> None:
    name = new_vfm()
    with worker_stopped(fleet):
        client = AsyncClient(url, retries=0)
        call = asyncio.create_task(client.infer(name, "a text"))
        await until(lambda: broker.depth(name) == 1, "the job is queued")
        await asyncio.wait_for(client.close(), 60)
        await asyncio.wait({call}, timeout=60)
        assert call.done(), "nobody waits for ever on a client that is closed"
        assert isinstance(call.exception(), FmplexError)


def test_a_closed_client_can_be_closed_again(url: str) -> None:
    client = Client(url)
    client.infer("embed", "x")
    client.close()
    client.close()


async def test_a_rate_counts_the_tokens_that_were_read(client: AsyncClient, new_vfm: NewVfm) -> None:
    """A long word seems to be four tokens and is one or two: what the estimate has taken too much is there again at once."""
    text = "international " * 40
    tokens = (await client.infer("embed", text)).units
    seems = len(text) // 4
    assert tokens < seems / 2
    name = new_vfm(limits={"rate": float(seems)})
    assert (await client.infer(name, text)).units == tokens
    assert (await client.infer(name, text[: len(text) // 3])).units < tokens


async def test_a_rate_gives_back_what_was_cancelled(
    fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm(limits={"rate": 10.0})
    with worker_stopped(fleet):
        handle = await client.enqueue(name, "a text " * 400)
        await until(lambda: broker.depth(name) == 1, "it is queued")
        with pytest.raises(RateLimited):
            await client.infer(name, "one more")
        await handle.cancel()
        await until(lambda: broker.depth(name) == 0, "it is taken back")
    assert (await client.infer(name, "one more")).output


async def test_a_vfm_full_of_bytes_says_so_and_a_call_that_never_fits_too(
    fleet: LocalFleet, client: AsyncClient, broker: Broker, new_vfm: NewVfm
) -> None:
    name = new_vfm(limits={"max_pending_bytes": 50_000, "max_call_bytes": 45_000})
    with worker_stopped(fleet):
        handle = await client.enqueue(name, "word " * 8_000, truncate=True)
        await until(lambda: broker.depth(name) == 1, "it is queued")
        with pytest.raises(QueueFull, match="max_pending_bytes") as caught:
            await client.infer(name, "y" * 20_000)
        assert caught.value.retry_after > 0
        with pytest.raises(TooLarge, match="max_call_bytes"):
            await client.infer(name, ["z" * 20_000] * 3)
        assert broker.depth(name) == 1
    assert (await handle.result(timeout=90)).output
    assert (await client.infer(name, "word " * 4_000, truncate=True)).output
