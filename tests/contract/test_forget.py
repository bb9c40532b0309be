"""Who has written replies down lets the broker forget them."""

from __future__ import annotations

import asyncio

import pytest

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams import connection
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.producer import StoredReply
from fmplex_broker.streams.queue_client import QueueClient, gather_replies
from fmplex_broker.wire.messages import OFFLINE
from tests.contract.harness import Bench, answer
from tests.support.waiting import until_soon

MANY = 150


async def answered(bench: Bench, session: QueueClient, key: str, texts: list[str]) -> list[StoredReply]:
    """Submit texts under a key and answer them; return where the replies are."""
    worker = await bench.worker(key)
    pending = await session.submit("a", texts, cls=OFFLINE, idempotency_key=key)
    while jobs := await bench.claimed(worker, offline=256):
        await worker.settle([(job, answer()) for job in jobs])
    await gather_replies(pending)
    await worker.leave()
    return [p.stored for p in pending]


async def kept(bench: Bench) -> dict[str, int]:
    """Count the replies and idempotency keys that are there."""
    names = await bench.names()
    return {kind: sum(name.startswith(f"{kind}:") for name in names) for kind in ("res", "idem")}


async def test_what_is_forgotten_is_gone_and_nothing_else(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    mine = await answered(bench, session, "mine", ["x"] * MANY)
    await answered(bench, session, "others", ["x"] * 3)
    assert await kept(bench) == {"res": MANY + 3, "idem": MANY + 3}
    await session.forget_results(mine)
    assert await kept(bench) == {"res": 3, "idem": 3}
    await session.forget_results(mine)  # nor does it matter when it is said twice
    await session.forget_results([])
    assert await kept(bench) == {"res": 3, "idem": 3}


async def test_what_is_known_is_not_run_again_and_what_is_forgotten_is(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    stored = await answered(bench, session, "k", ["x", "y"])
    [x, y] = await session.submit("a", ["x", "y"], cls=OFFLINE, idempotency_key="k")
    assert [x.stored, y.stored] == stored
    assert [(await p.result()).output for p in (x, y)] == ["done", "done"]
    assert await bench.depth(cls=OFFLINE) == 0
    await session.forget_results(stored[1:])
    [x, y] = await session.submit("a", ["x", "y"], cls=OFFLINE, idempotency_key="k")
    assert (x.stored, y.stored == stored[1]) == (stored[0], False)
    assert await bench.depth(cls=OFFLINE) == 1


async def test_who_comes_after_another_session_is_told_of_the_same_replies(
    bench: Bench, session: QueueClient, other: QueueClient
) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    first = await session.submit("a", ["x"], cls=OFFLINE, idempotency_key="k")
    second = await other.submit("a", ["x"], cls=OFFLINE, idempotency_key="k")
    await worker.settle([(job, answer()) for job in await bench.claimed(worker, offline=1)])
    await asyncio.gather(gather_replies(first), gather_replies(second))
    assert first[0].stored == second[0].stored
    await other.forget_results([second[0].stored])
    assert await kept(bench) == {"res": 0, "idem": 0}


async def test_replies_of_several_backbones(bench: Bench, session: QueueClient) -> None:
    await bench.redis.set("{one}:res:j1", b"x", px=60_000)
    await bench.redis.set("{one}:idem:k", b"x", px=60_000)
    await bench.redis.set("{two}:res:j2", b"x", px=60_000)
    await bench.redis.set("{two}:res:j1", b"x", px=60_000)
    await session.forget_results([StoredReply("one", "j1", "k"), StoredReply("two", "j2", "k")])
    assert await bench.redis.keys("{*") == [b"{two}:res:j1"]


async def test_a_broker_that_is_away_says_so(
    crashable: tuple[EmbeddedServer, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bench = crashable
    monkeypatch.setattr(connection, "ANSWER_S", 0.5)
    session = QueueClient(bench.redis, scripts=bench.scripts)
    await bench.redis.set("{one}:res:j1", b"x", px=60_000)
    server.kill()
    with pytest.raises(BrokerUnavailable):
        await session.forget_results([StoredReply("one", "j1", "k")])
    server.start()

    async def forgotten() -> bool:
        try:
            await session.forget_results([StoredReply("one", "j1", "k")])
        except BrokerUnavailable:
            return False
        return True

    await until_soon(forgotten)
    assert await bench.redis.exists("{one}:res:j1") == 0
