"""release and recover: giving back what has not started, and healing after a lost reply."""

from __future__ import annotations

import pytest

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE
from tests.contract.harness import Bench, answer, job


async def test_release_takes_the_attempt_back(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    for _ in range(4):
        [held] = await bench.claimed(worker)
        assert held.attempts == 1
        assert await worker.release([held]) == 1
    assert list((await bench.pending()).values()) == [("released", 0)]


async def test_release_makes_jobs_claimable_by_another_worker(bench: Bench) -> None:
    """They are pending, so `>` never returns them: marking the flow ready alone would lose them."""
    await bench.serve("a", "b")
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.enqueue(*(job(v, cls=c) for v in "ab" for c in (INTERACTIVE, OFFLINE) for _ in range(3)))
    held = await bench.claimed(worker, interactive=10, offline=10)
    rung = await bench.rings()
    assert await worker.release(held) == 12
    assert await bench.rings() == rung + 1
    assert set(await bench.back()) == {"interactive:a", "interactive:b", "offline:a", "offline:b"}
    again = await bench.claimed(other, interactive=10, offline=10)
    assert {j.entry for j in again} == {j.entry for j in held}
    assert await other.settle([(j, answer()) for j in again]) == [True] * 12
    assert await bench.back() == []


async def test_release_of_what_is_not_mine_does_nothing(bench: Bench) -> None:
    await bench.serve("a")
    owner, thief = await bench.worker("owner"), await bench.worker("thief")
    await bench.enqueue(job())
    held = await bench.claimed(owner)
    rung = await bench.rings()
    assert await thief.release(held) == 0
    assert await owner.release(held) == 1
    assert await owner.release(held) == 0
    assert await bench.rings() == rung + 1
    assert await bench.claimed(thief) != []


async def test_release_delayed_past_a_recovery_is_stale(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection was cut, the worker recovered and claimed the job again, and only now the old words arrive."""
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    held = await bench.claimed(worker)
    await worker.recover([])
    [again] = await bench.claimed(worker)
    monkeypatch.setattr(worker, "_epoch", 1)
    with pytest.raises(BrokerUnavailable, match="recover again"):
        await worker.release(held)
    monkeypatch.undo()
    assert await worker.settle([(again, answer())]) == [True]


async def test_recover_gives_back_what_i_do_not_know_and_keeps_what_i_know(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.enqueue(*(job(v) for v in "ab" for _ in range(3)))
    held = await bench.claimed(worker)
    rung = await bench.rings()
    assert await worker.recover(held[:2])
    assert await bench.rings() == rung + 1
    assert {j.entry for j in await bench.claimed(other)} == {j.entry for j in held[2:]}
    assert await worker.settle([(j, answer()) for j in held]) == [True] * 2 + [False] * 4


async def test_recover_takes_the_attempt_back(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    await bench.claimed(worker)
    await worker.recover([])
    assert [j.attempts for j in await bench.claimed(worker)] == [1]


async def test_recover_leaves_other_workers_alone(bench: Bench) -> None:
    await bench.serve("a")
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.enqueue(*(job() for _ in range(4)))
    held = await bench.claimed(other, room=2)
    await bench.claimed(worker)
    await worker.recover([])
    assert await other.settle([(j, answer()) for j in held]) == [True, True]


async def test_recover_of_very_many(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(*(job() for _ in range(1100)))
    held = [j for _ in range(5) for j in await bench.claimed(worker)]
    await worker.recover(held[400:700])
    mine = [entry for entry, (owner, _) in (await bench.pending()).items() if owner == "w1"]
    assert mine == [j.entry for j in held[400:700]]


async def test_recover_of_a_condemned_worker_says_so(bench: Bench) -> None:
    await bench.serve("a")
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.lapse(worker)
    await other.reap(10**6, max_attempts=3)
    assert not await worker.recover([])


async def test_recover_delayed_past_the_next_one_is_stale(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would set the epoch back and give away what was claimed since."""
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    await worker.recover([])
    await worker.recover([])
    [held] = await bench.claimed(worker)
    with monkeypatch.context() as late:
        late.setattr(worker, "_epoch", 1)
        await worker.recover([])  # the first one, once more
    assert await worker.settle([(held, answer())]) == [True]
    assert (await worker.claim({INTERACTIVE: 1})).state == "ok"
