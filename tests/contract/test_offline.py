"""Offline work is by itself: who waits for an answer must not pay for it, and it keeps its answers for who comes back late."""

from __future__ import annotations

import pytest

from fmplex_broker.errors import InvalidInput, QueueFull, RateLimited, TooLarge
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, OFFLINE
from tests.contract.harness import Bench, answer, job

DAY_MS = 86_400_000
MINUTE, QUARTER = (59_000, 60_000), (899_000, 900_000)  # ms that replies live, from and to
LIVES = pytest.mark.parametrize(("cls", "life"), [(INTERACTIVE, MINUTE), (OFFLINE, QUARTER)])
EACH = pytest.mark.parametrize(("mine", "others"), [(INTERACTIVE, OFFLINE), (OFFLINE, INTERACTIVE)])


# --- rates ------------------------------------------------------------------------------------------------------------


@EACH
async def test_a_class_that_is_over_the_rate_limits_itself_only(bench: Bench, mine: str, others: str) -> None:
    await bench.serve("a", rate=100)
    assert await bench.enqueue(*(job(cls=mine, units=10) for _ in range(12))) == ["new"] * 10 + ["limited"] * 2
    assert await bench.enqueue(*(job(cls=others, units=10) for _ in range(12))) == ["new"] * 10 + ["limited"] * 2


@EACH
async def test_what_jobs_have_really_read_is_put_right_in_their_class(bench: Bench, mine: str, others: str) -> None:
    await bench.serve("a", rate=100)
    worker = await bench.worker()
    await bench.enqueue(job(cls=mine, units=1))
    [held] = await bench.claimed(worker, **{mine: 1})
    held.tokens = 1_000
    assert await worker.settle([(held, answer())]) == [True]
    assert await bench.enqueue(job(cls=mine, units=50), job(cls=others, units=100)) == ["limited", "new"]


@EACH
async def test_a_cancelled_job_gives_back_to_its_class(bench: Bench, mine: str, others: str) -> None:
    await bench.serve("a", rate=100)
    sent = job(cls=mine, units=1_000)
    await bench.enqueue(sent, job(cls=others, units=1_000))
    assert await bench.producer().cancel([(sent.flow, sent.job, sent.idem)]) == ["cancelled"]
    assert await bench.enqueue(job(cls=mine, units=100), job(cls=others, units=100)) == ["new", "limited"]


async def test_a_vfm_that_is_removed_leaves_no_bucket(bench: Bench) -> None:
    await bench.serve("a", rate=100)
    await bench.enqueue(*(job(cls=cls) for cls in CLASSES))
    assert {n for n in await bench.names() if n.startswith("rate:")} == {"rate:interactive:a", "rate:offline:a"}
    assert (await bench.scripts("retire", bench.keys.vfms, ["a", "answer", 9, answer()]))[0] == b"gone"
    assert not {n for n in await bench.names() if n.startswith("rate:")}


async def test_a_batch_over_the_rate_is_told_when_to_come_back_and_its_vfms_callers_are_not(
    bench: Bench, session: QueueClient
) -> None:
    await bench.serve("a", rate=10)
    await session.submit("a", ["word " * 40], cls=OFFLINE)
    with pytest.raises(RateLimited) as e:
        await session.submit("a", ["x"], cls=OFFLINE)
    assert e.value.retry_after > 0
    await session.submit("a", ["x"])


# --- lives of replies -------------------------------------------------------------------------------------------------


@LIVES
@pytest.mark.parametrize("timeout_ms", [10_000, 7 * DAY_MS])
async def test_a_reply_and_its_key_live_as_long_as_its_class_says(
    bench: Bench, cls: str, life: tuple[int, int], timeout_ms: int
) -> None:
    await bench.serve("a")
    worker, sent = await bench.worker(), job(cls=cls, timeout_ms=timeout_ms, key="k", id="j")
    await bench.enqueue(sent)
    assert await worker.settle([(held, answer(1)) for held in await bench.claimed(worker, **{cls: 1})]) == [True]
    assert life[0] < await bench.redis.pttl(bench.keys.result("j")) <= life[1]
    assert await bench.redis.pttl(bench.keys.inbox("client")) >= life[0], "who reads the inbox finds it as long"
    known = await bench.redis.pttl(bench.keys.prefix + "idem:k")
    assert known >= life[0]
    assert known <= life[1] + 10_000, "however long its deadline was"
    assert await bench.enqueue(sent) == ["done"]


@LIVES
@pytest.mark.parametrize("end", ["cancel", "retire", "reap"])
async def test_so_do_replies_of_jobs_that_never_ran(bench: Bench, cls: str, life: tuple[int, int], end: str) -> None:
    await bench.serve("a")
    sent = job(cls=cls, id="j")
    await bench.enqueue(sent)
    if end == "cancel":
        assert await bench.producer().cancel([(sent.flow, "j", sent.idem)]) == ["cancelled"]
    elif end == "retire":
        await bench.scripts("retire", bench.keys.vfms, ["a", "answer", 9, answer()])
    else:
        dead, heir = await bench.worker("dead", 3_000), await bench.worker("heir", 3_000)
        await bench.claimed(dead, **{cls: 1})
        await bench.lapse(dead)
        assert (await heir.reap(3_000, max_attempts=1)).dead_letters == 1
    assert life[0] < await bench.redis.pttl(bench.keys.result("j")) <= life[1]


# --- deadlines --------------------------------------------------------------------------------------------------------


async def test_an_offline_job_has_a_day_unless_it_says_otherwise_and_a_week_at_most(
    bench: Bench, session: QueueClient
) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    for wanted, given in ((None, DAY_MS), (1_000, 1_000), (7 * DAY_MS, 7 * DAY_MS)):
        seconds, micros = await bench.redis.time()
        await session.submit("a", ["x"], cls=OFFLINE, timeout_ms=wanted)
        [held] = await bench.claimed(worker, offline=1)
        assert given - 1 <= held.deadline_ms - (seconds * 1000 + micros // 1000)
        assert held.deadline_ms - held.enqueued_ms <= given + 1_000
    with pytest.raises(InvalidInput, match="between 1 and 604800000 for offline jobs"):
        await session.submit("a", ["x"], cls=OFFLINE, timeout_ms=7 * DAY_MS + 1)
    with pytest.raises(InvalidInput, match="between 1 and 86400000"):
        await session.submit("a", ["x"], timeout_ms=DAY_MS + 1)


# --- room in the broker -----------------------------------------------------------------------------------------------


async def test_offline_jobs_fill_half_of_the_bytes_that_may_wait_and_leave_the_rest(
    bench: Bench, session: QueueClient
) -> None:
    await bench.serve("a", max_bytes=20_000)
    texts = [f"{n}" + "x" * 900 for n in range(20)]
    for text in texts[:8]:
        await session.submit("a", [text], cls=OFFLINE)
    with pytest.raises(QueueFull, match=r"10000 bytes \(half of limits.max_pending_bytes of 'a'\)"):
        await session.submit("a", [texts[8]], cls=OFFLINE)
    assert await bench.counted("a") <= 10_000
    await session.submit("a", texts[:8])  # as before they came
    with pytest.raises(TooLarge, match="half of"):
        await session.submit("a", ["x" * 12_000], cls=OFFLINE)


async def test_so_it_is_with_what_a_backbone_may_hold(bench: Bench) -> None:
    await bench.serve("a", "b")
    await bench.redis.hset(bench.keys.vfms, ":max_bytes", 20_000)
    got = await bench.enqueue(*(job("ab"[n % 2], b"x" * 900, cls=OFFLINE) for n in range(20)))
    assert got.count("new") == 8
    assert set(got) == {"new", "full_backbone"}
    assert await bench.enqueue(*(job("ab"[n % 2], b"x" * 900) for n in range(8))) == ["new"] * 8
