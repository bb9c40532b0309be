"""Recording passes: workers tell while somebody listens, and fall silent when nobody does."""

from __future__ import annotations

from fmplex_broker.streams.fleet import publish
from fmplex_broker.streams.tracing import KEPT_MS, TRACING_TTL_MS, Tracer
from fmplex_broker.wire.passes import PassPart, PassRecord
from fmplex_broker.wire.stats import WorkerStats
from tests.contract.harness import BACKBONE, Bench
from tests.support.waiting import until_soon


def ran(number: int, worker: str = "w1") -> PassRecord:
    return PassRecord(
        worker, BACKBONE, number, "interactive", 1e3, 0.1, 0.1, 30, 100, 2, [PassPart("a", 3, 30, 0.1, 5.0, 2.0)]
    )


async def report(bench: Bench, *passes: PassRecord, worker: str = "w1") -> bool:
    return await publish(bench.redis, WorkerStats(worker, BACKBONE, "cpu", 1, "host"), passes)


async def untraced(bench: Bench, worker: str = "w1") -> bool:
    return await publish(bench.redis, WorkerStats(worker, BACKBONE, "cpu", 1, "host"))


def tracer(bench: Bench) -> Tracer:
    return Tracer(bench.redis, [BACKBONE])


async def numbers(listening: Tracer) -> list[int]:
    return [record.number for _, told in await listening.read() for record in told.passes]


async def test_nobody_listens_nothing_is_told(bench: Bench) -> None:
    assert not await untraced(bench)
    assert await bench.names() == {"stats:w1"}


async def test_workers_hear_of_a_tracer_with_their_next_report(bench: Bench) -> None:
    assert await tracer(bench).read() == []
    assert await untraced(bench)
    assert await publish(bench.redis, WorkerStats("w1", "another", "cpu", 1, "host")) is False


async def test_each_report_is_heard_once_and_whole(bench: Bench) -> None:
    listening = tracer(bench)
    assert await listening.read() == []
    before = await listening.now_ms()
    await report(bench, ran(1), ran(2))
    await report(bench, ran(1, "w2"), worker="w2")
    first, second = await listening.read()
    assert (first.report.worker, first.report.passes) == ("w1", [ran(1), ran(2)])
    assert (second.report.worker, second.report.passes) == ("w2", [ran(1, "w2")])
    assert before <= first.at_ms <= second.at_ms <= await listening.now_ms()
    assert await listening.read() == []
    await report(bench)
    assert [(h.report.worker, h.report.passes) for h in await listening.read()] == [("w1", [])], "no pass is news too"


async def test_two_may_listen_and_neither_hears_what_was_before_it(bench: Bench) -> None:
    early, late = tracer(bench), tracer(bench)
    assert await early.read() == []
    await report(bench, ran(1))
    assert await late.read() == []
    await report(bench, ran(2))
    assert await numbers(late) == [2]
    assert await numbers(early) == [1, 2]


async def test_a_tracer_that_dies_is_forgotten(bench: Bench) -> None:
    assert await tracer(bench).read() == []
    await report(bench, ran(1))
    assert 0 < await bench.redis.pttl(bench.keys.tracing) <= TRACING_TTL_MS
    assert 0 < await bench.redis.pttl(bench.keys.passes) <= KEPT_MS
    await bench.redis.delete(bench.keys.tracing)  # as its TTL does
    assert not await report(bench, ran(2))


async def test_a_tracer_that_goes_on_renews_its_word(bench: Bench) -> None:
    listening = tracer(bench)
    await listening.read()
    await bench.redis.pexpire(bench.keys.tracing, 900)
    await listening.read()
    assert await bench.redis.pttl(bench.keys.tracing) > 1000


async def test_old_reports_go_while_somebody_reads(bench: Bench) -> None:
    listening = tracer(bench)
    await listening.read()
    await bench.redis.xadd(bench.keys.passes, {"p": b"old"}, id="5-1")
    await report(bench, ran(1))
    assert await numbers(listening) == [1]
    assert await bench.redis.xlen(bench.keys.passes) == 1


async def test_reports_of_another_version_are_passed_over(bench: Bench) -> None:
    listening = tracer(bench)
    await listening.read()
    await bench.redis.xadd(bench.keys.passes, {"p": b"\xc1"})
    await report(bench, ran(7))
    assert await numbers(listening) == [7]


async def test_a_stream_that_ran_out_begins_again(bench: Bench) -> None:
    listening = tracer(bench)
    await listening.read()
    await report(bench, ran(1))
    (first,) = await listening.read()
    await bench.redis.delete(bench.keys.passes)  # as its TTL does, which is not within the same millisecond

    async def later() -> bool:
        return await listening.now_ms() > first.at_ms

    await until_soon(later)
    await report(bench, ran(2))
    assert await numbers(listening) == [2]
