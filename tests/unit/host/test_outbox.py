"""The way out: one reply a job, settled in batches, however often the broker is away; and what a reader of a text is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest

from fmplex_broker.errors import BrokerUnavailable, Cancelled, JobFailed
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow, decode_reply
from fmplex_broker.wire.streaming import Chunk, Delta, decode_chunk
from fmplex_worker.host import outbox as outbox_module
from fmplex_worker.host import streaming as streaming_module
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.outbox import Outbox
from fmplex_worker.host.stats import Meter
from fmplex_worker.host.streaming import ChunkSender
from fmplex_worker.protocol import EngineInfo
from fmplex_worker.scheduling import CostModel
from tests.support.hosting import HOSTED
from tests.support.waiting import until_soon
from tests.unit.host.tables import Encode, Table, claimed

A = Flow("a", INTERACTIVE)


@dataclass
class Broker:
    """Keeps what it is sent; while it is `away`, it fails that many calls."""

    worker: str = "w"
    away: int = 0
    settled: list[list[tuple[Claimed, bytes]]] = field(default_factory=list)
    chunks: list[list[tuple[Claimed, bytes]]] = field(default_factory=list)

    def _call(self) -> None:
        if self.away:
            self.away -= 1
            raise BrokerUnavailable("away")

    async def settle(self, batch: Sequence[tuple[Claimed, bytes]]) -> None:
        self._call()
        self.settled.append(list(batch))

    async def send_chunks(self, chunks: Sequence[tuple[Claimed, bytes]]) -> None:
        self._call()
        self.chunks.append(list(chunks))


class Bench:
    """An outbox whose clock the test sets, in ms of server time."""

    def __init__(self) -> None:
        self.broker = Broker()
        self.now_ms = 1000.0
        self.table = Table(3)
        consumer: Any = self.broker
        engine: Any = SimpleNamespace(info=EngineInfo("b", "text", 8, 64, "cpu", 1, HOSTED), device_bytes=0)
        self.meter = Meter("w", engine, CostModel(100))
        self.chunks = ChunkSender(consumer)
        clock: Any = SimpleNamespace(now_ms=lambda: self.now_ms)
        self.outbox = Outbox(consumer, self.table, clock, self.meter, self.chunks)

    def job(self, n: int, kind: str = "encode") -> ActiveJob:
        job = self.table.take(replace(claimed(n), entry=f"400-{n}"))
        self.table.move(job, JobState.PREPARING)
        prepared: Any = Encode(10)
        if kind == "generate":
            prepared = SimpleNamespace(kind=kind, units=10)
        self.table.accept(job, prepared)
        return job

    def answer(self, job: ActiveJob, output: object) -> None:
        self.table.move(job, JobState.ANSWERED)
        self.outbox.send(job, output)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(task) for task in (self.outbox.run(), self.chunks.run())]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def told(self) -> list[tuple[str, Chunk]]:
        return [(to.job, decode_chunk(data)) for batch in self.broker.chunks for to, data in batch]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(outbox_module, "_BACKOFF_S", 0.001)
    return Bench()


def delta(at: int, text: str) -> Delta:
    return Delta(at, text, at, len(text), [])


async def test_a_reply_says_what_the_job_was_and_how_long_it_took(bench: Bench) -> None:
    job = bench.job(1)
    job.wait_ms, job.run_ms, job.load_ms, job.charged = 25.0, 7.0, 3.0, 12.5
    async with bench.running():
        bench.answer(job, {"label": "x"})
        await bench.outbox.flushed()
    [[(settled, payload)]] = bench.broker.settled
    reply = decode_reply(payload)
    assert (reply.output, reply.error, reply.version, reply.worker, reply.units) == ({"label": "x"}, None, "v", "w", 10)
    assert (reply.queue_ms, reply.run_ms, reply.load_ms) == (25.0, 7.0, 3.0)
    assert settled.spent == 12.5, "virtual time is put right by what it was charged"
    stats = bench.meter._flow(A)
    assert (stats.done, stats.failed, stats.latency_s, stats.wait_s) == (1, 0, 0.6, 0.025)


async def test_what_never_ran_has_waited_all_its_time(bench: Bench) -> None:
    async with bench.running():
        bench.answer(bench.job(1), JobFailed("no"))
        await bench.outbox.flushed()
    reply = decode_reply(bench.broker.settled[0][0][1])
    assert isinstance(reply.error, JobFailed)
    assert (reply.output, reply.queue_ms) == (None, 600.0)
    assert bench.meter._flow(A).failed == 1


async def test_a_broker_that_is_away_delays_replies_and_loses_none(bench: Bench) -> None:
    bench.broker.away = 3
    jobs = [bench.job(n) for n in range(600)]
    async with bench.running():
        for job in jobs:
            bench.answer(job, "done")
        await bench.outbox.flushed()
    assert [len(batch) for batch in bench.broker.settled] == [256, 256, 88]
    assert [to.job for batch in bench.broker.settled for to, _ in batch] == [f"job{n}" for n in range(600)]
    assert len(bench.table) == 0


async def test_a_job_is_known_until_its_reply_is_settled(bench: Bench) -> None:
    job = bench.job(1)
    bench.answer(job, "done")
    assert list(bench.table) == [job]
    waits = asyncio.create_task(bench.outbox.flushed())
    await asyncio.sleep(0)
    assert not waits.done()
    async with bench.running():
        await waits
    assert list(bench.table) == []


async def test_first_words_go_at_once_and_later_ones_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_module, "_GATHER_S", 60.0)
    one, two = bench.job(1, "generate"), bench.job(2, "generate")
    one.streams = two.streams = True
    async with bench.running():
        bench.outbox.stream(one, delta(0, "He"))
        await until_soon(lambda: bench.told())
        bench.outbox.stream(one, delta(2, "ll"))
        bench.outbox.stream(one, delta(4, "o"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(bench.told()) == 1, "more of a text is gathered"
        bench.outbox.stream(two, delta(0, "Yes"))  # somebody's first words: all that has gathered goes with them
        await until_soon(lambda: len(bench.told()) == 3)
    told = {(job, chunk.number): chunk.delta for job, chunk in bench.told()}
    assert told == {
        ("job1", 1): delta(0, "He"),
        ("job1", 2): delta(2, "ll") + delta(4, "o"),
        ("job2", 1): delta(0, "Yes"),
    }


async def test_nothing_is_told_behind_a_reply_or_to_who_does_not_read(bench: Bench) -> None:
    reads, deaf = bench.job(1, "generate"), bench.job(2, "generate")
    reads.streams = True
    bench.outbox.stream(reads, delta(0, "He"))
    bench.outbox.stream(deaf, delta(0, "He"))
    for job in (reads, deaf):
        bench.answer(job, {"text": "He", "prompt_tokens": 3, "cached_tokens": 0})
    async with bench.running():
        await bench.outbox.flushed()
        await asyncio.sleep(0.05)  # longer than chunks gather
    assert bench.told() == []


async def test_a_chunk_that_cannot_be_sent_leaves_a_gap_in_the_numbers(bench: Bench) -> None:
    job = bench.job(1, "generate")
    job.streams = True
    async with bench.running():
        bench.broker.away = 1
        bench.outbox.stream(job, delta(0, "a"))
        await until_soon(lambda: not bench.broker.away)
        bench.outbox.stream(job, delta(1, "b"))
        await until_soon(lambda: bench.told())
    assert [(chunk.number, chunk.delta.text) for _, chunk in bench.told()] == [(2, "b")]


async def test_times_to_tokens_are_counted_of_texts_alone(bench: Bench) -> None:
    job = bench.job(1, "generate")
    bench.outbox.stream(job, delta(0, "x"))  # 600 ms after it was enqueued
    bench.now_ms += 40
    bench.outbox.stream(job, delta(1, "yz"))
    bench.now_ms += 10
    bench.answer(job, {"text": "xyz!", "prompt_tokens": 5, "cached_tokens": 2})
    bench.answer(bench.job(2), "a vector")
    stats = bench.meter._flow(A)
    assert (stats.tokens, stats.ttft_s, stats.prompt_tokens, stats.cached_tokens) == (4, 0.6, 5, 2)
    assert stats.gaps_s == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("kind", "output", "tokens"),
    [
        ("encode", {"label": "x"}, 10),
        ("encode", JobFailed("no"), 10),
        ("generate", {"text": "He", "prompt_tokens": 7, "completion_tokens": 4, "cached_tokens": 0}, 11),
        ("generate", Cancelled("gave up"), 13),  # its prompt, and the three tokens that have come
    ],
)
async def test_a_rate_is_charged_what_was_read_and_written(bench: Bench, kind: str, output: Any, tokens: int) -> None:
    job = bench.job(1, kind)
    if kind == "generate":
        bench.outbox.stream(job, delta(0, "Hel"))
    job.wait_ms = 5.0  # it has begun
    bench.answer(job, output)
    assert job.claimed.tokens == tokens


async def test_what_never_ran_is_given_back_to_its_rate(bench: Bench) -> None:
    job = bench.job(1)
    bench.answer(job, JobFailed("refused before its first pass"))
    assert job.claimed.tokens == 0


async def test_a_clock_that_is_set_back_makes_no_negative_times(bench: Bench) -> None:
    job = bench.job(1, "generate")
    bench.now_ms = 100.0  # it was enqueued at 400
    bench.outbox.stream(job, delta(0, "a"))
    bench.now_ms = 50.0
    bench.outbox.stream(job, delta(1, "b"))
    job.wait_ms = -350.0
    bench.answer(job, {"text": "ab", "prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 0})
    async with bench.running():
        await bench.outbox.flushed()
    stats = bench.meter._flow(A)
    assert min(stats.ttft_s, stats.gaps_s, stats.latency_s, stats.wait_s) >= 0
    assert decode_reply(bench.broker.settled[0][0][1]).queue_ms == 0


def test_answers_and_tokens_of_interactive_jobs_are_judged_where_there_is_training(bench: Bench) -> None:
    """Whether a unit has made them late: nobody waits for what is offline."""
    bench.meter.books = books = Mock()
    for cls in (OFFLINE, INTERACTIVE):
        flow = Flow("a", cls)
        bench.meter.answered(flow, failed=False, latency_ms=5.0, wait_ms=1.0)
        bench.meter.first_token(flow, 6.0)
        bench.meter.next_tokens(flow, 2, 7.0)
    assert books.mock_calls == [call.answered("a", 5.0), call.first_token("a", 6.0), call.next_tokens("a", 2, 7.0)]
