"""retire: closed at once, drained or answered, then all keys dropped together."""

from __future__ import annotations

import pytest

from fmplex_broker.wire.messages import OFFLINE
from tests.contract.harness import Bench, answer, job


async def retire(bench: Bench, mode: str, vfm: str = "a", budget: int = 100) -> tuple[str, int]:
    state, left = await bench.scripts("retire", bench.keys.vfms, [vfm, mode, budget, answer("retired")])
    return state.decode(), left


async def traces(bench: Bench, vfm: str = "a") -> list[str]:
    """Whatever still speaks of the vFM, but for what a TTL takes away."""
    names = [n for n in await bench.names() if n.endswith(f":{vfm}")]
    fields = [f.decode() for f in await bench.redis.hkeys(bench.keys.vfms)]
    ready = [v for cls in ("interactive", "offline") for v in await bench.ready(cls)]
    back = [flow.partition(":")[2] for flow in await bench.back()]
    return names + [f for f in fields if f.partition(":")[0] == vfm] + [v for v in ready + back if v == vfm]


async def test_closed_at_once_while_its_jobs_drain(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.enqueue(job("a"), job("a", cls=OFFLINE), job("b"))
    assert await retire(bench, "drain") == ("draining", 2)
    assert await bench.enqueue(job("a"), job("b")) == ["closed", "new"]
    jobs = await bench.claimed(worker, interactive=5, offline=5)
    assert await retire(bench, "drain") == ("draining", 2)  # running jobs are waited for
    assert await worker.settle([(j, answer()) for j in jobs]) == [True] * 4
    assert await retire(bench, "drain") == ("gone", 0)
    assert await traces(bench) == []
    assert await bench.enqueue(job("a"), job("b")) == ["unknown", "new"]


async def test_answered_if_not_drained(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(*(job(id=f"{i}") for i in range(4)), job(id="offline", cls=OFFLINE))
    running, back = await bench.claimed(worker, room=2)
    await worker.release([back])
    assert await retire(bench, "answer") == ("draining", 1)
    assert {m.job: m.reply.output for m in await bench.mail()} == dict.fromkeys(
        {"0", "1", "2", "3", "offline"} - {running.job}, "retired"
    )
    assert await worker.settle([(running, answer())]) == [True]
    assert await retire(bench, "answer") == ("gone", 0)
    assert await traces(bench) == []
    assert len(await bench.mail()) == 5


async def test_answering_is_bounded(bench: Bench) -> None:
    await bench.serve("a")
    await bench.enqueue(*(job() for _ in range(25)))
    steps = [await retire(bench, "answer", budget=10) for _ in range(3)]
    assert steps == [("draining", 15), ("draining", 5), ("gone", 0)]
    assert len(await bench.mail()) == 25


async def test_all_keys_go(bench: Bench) -> None:
    """Every key and field that a vFM can have, and nothing of its neighbour."""
    await bench.serve("a", rate=1000)
    await bench.serve("ab")
    worker, dead = await bench.worker(), await bench.worker("dead")
    await bench.enqueue(job(id="poison"), job("ab"), job(cls=OFFLINE))
    await dead.mark(await bench.claimed(dead, interactive=5, offline=5))
    await bench.lapse(dead)
    await worker.reap(10**6, max_attempts=1)
    await bench.enqueue(job(payload=b"x" * 70_000), job(cls=OFFLINE))
    await worker.release(await bench.claimed(worker, interactive=1, offline=1))
    await bench.scripts("propose", bench.keys.vfms, ["a", "v2", "{}", 2, 100, 1.0, 0, 0])
    assert {"dead:a", "rate:interactive:a", "q:interactive:a", "q:offline:a"} <= await bench.names()
    assert await retire(bench, "answer") == ("gone", 0)
    assert await traces(bench) == []
    assert (await bench.names()) & {"dead:ab", "q:interactive:ab"} == {"dead:ab", "q:interactive:ab"}
    assert b"ab" in await bench.redis.hkeys(bench.keys.vfms)


@pytest.mark.parametrize("late", ["reap", "leave", "recover", "release", "settle", "claim"])
async def test_no_key_comes_back_after_a_late_word(bench: Bench, late: str) -> None:
    """A worker that has touched the vFM acts once more when all its keys are gone."""
    await bench.serve("a", "b")
    worker, other = await bench.worker(), await bench.worker("other")
    await bench.enqueue(job("a"), job("b"))
    jobs = [j for j in await bench.claimed(worker) if j.flow.vfm == "a"]
    await worker.mark(jobs)
    await worker.settle([(j, answer()) for j in jobs])
    assert await retire(bench, "drain") == ("gone", 0)
    if late == "reap":
        await bench.lapse(worker)
        assert (await other.reap(10**6, max_attempts=1)).state == "ok"
    elif late == "leave":
        await worker.leave()
    elif late == "recover":
        assert await worker.recover([])
    elif late == "release":
        assert await worker.release(jobs) == 0
    elif late == "settle":
        assert await worker.settle([(j, answer()) for j in jobs]) == [False]
    elif late == "claim":
        await bench.redis.zadd(bench.keys.ready("interactive"), {"a": 0})
        await bench.redis.zadd(bench.keys.back, {"interactive:a": 1})
        assert await bench.claimed(worker) == []
    assert await traces(bench) == []


async def test_retire_of_the_unknown_is_gone(bench: Bench) -> None:
    assert await retire(bench, "drain", "nobody") == ("gone", 0)
    assert await bench.names() == set()


async def test_retire_of_a_rejected_or_unaccepted_vfm(bench: Bench) -> None:
    await bench.worker()
    await bench.scripts("propose", bench.keys.vfms, ["a", "v1", "{}", -1, 100, 1.0, 0, 0])
    assert await retire(bench, "drain") == ("gone", 0)
    await bench.scripts("propose", bench.keys.vfms, ["a", "v1", "{}", -1, 100, 1.0, 0, 0])
    await bench.scripts("vote", bench.keys.vfms, ["a", "v1", "w1", "{}"])
    assert await retire(bench, "drain") == ("gone", 0)
    assert await traces(bench) == []


async def test_the_name_can_be_used_again(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(*(job(units=50) for _ in range(3)))
    await worker.settle([(j, answer()) for j in await bench.claimed(worker)])
    await retire(bench, "drain")
    await bench.serve("a")
    assert await bench.enqueue(job()) == ["new"]
    assert len(await bench.claimed(worker)) == 1


async def test_the_changes_counter_moves(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    seen = [(await worker.beat()).changes]
    await retire(bench, "drain")
    seen.append((await worker.beat()).changes)
    await retire(bench, "answer")
    seen.append((await worker.beat()).changes)
    assert seen[0] < seen[1] < seen[2]
