"""Connections: commands are never resent, every failure is `BrokerUnavailable`, and a cancellation is always heard."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import Connection

from fmplex_broker.errors import BrokerFault, BrokerUnavailable
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.embedded import EmbeddedServer, free_port
from tests.contract.harness import BACKBONE, Bench, job


@pytest.mark.parametrize("steps", range(40))
async def test_a_cancellation_is_heard_at_every_await(real: Bench, steps: int) -> None:
    """Also in the moment in which a command has just been sent: else a task that is asked to end goes on for ever."""

    async def read() -> None:
        while True:
            await real.redis.xread({"nothing": "0-0"}, block=5_000)

    await real.redis.ping()
    task = asyncio.create_task(read())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=1)
    if not done:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert done
    assert await real.redis.ping()  # no answer of the cancelled command is left on the connection
    assert await real.redis.echo("mine") == b"mine"


arguments = st.one_of(st.text(), st.binary(), st.integers(), st.floats(allow_nan=False), st.just(bytes(70_000)))


@given(st.lists(arguments))
def test_commands_are_written_as_redis_py_writes_them(args: list[str | bytes | int | float]) -> None:
    ours = open_redis("redis://127.0.0.1").connection_pool.make_connection()
    theirs = Connection()  # type: ignore[no-untyped-call]
    assert b"".join(ours.pack_command("EVALSHA", *args)) == b"".join(theirs.pack_command("EVALSHA", *args))


def test_a_large_argument_is_not_copied() -> None:
    ours, payload = open_redis("redis://127.0.0.1").connection_pool.make_connection(), bytes(1 << 20)
    assert any(chunk is payload for chunk in ours.pack_command("SET", "key", payload))


async def test_broker_unavailable_when_nobody_listens() -> None:
    redis = open_redis(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(BrokerUnavailable, match="is it running"):
        await Bench(redis, Scripts(redis)).enqueue(job())
    await redis.aclose()


async def test_the_same_client_goes_on_when_the_server_comes_back(crashable: tuple[EmbeddedServer, Bench]) -> None:
    server, bench = crashable
    await bench.serve("a")
    server.kill()
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await bench.enqueue(job())
    server.start()
    assert await bench.enqueue(job()) == ["new"]  # also: NOSCRIPT, the scripts are loaded again


async def test_noscript_after_script_flush(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    await bench.redis.script_flush()
    assert await bench.enqueue(job()) == ["new"]
    await bench.redis.script_flush()
    held = await bench.claimed(worker)
    for call in (worker.mark, worker.release, worker.recover):
        await bench.redis.script_flush()
        await call(held)
    await bench.redis.script_flush()
    assert (await worker.beat()).alive
    assert len(await bench.claimed(worker)) == 2


async def test_commands_are_never_resent_by_the_library(real: Bench) -> None:
    """A lost reply to an XADD, resent, would add twice."""
    sent = 0

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while data := await reader.read(65536):
            if b"XADD" in data:
                sent += 1
                break
            writer.write(b"+OK\r\n" * data.count(b"SETINFO"))
        writer.close()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        redis = open_redis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(Exception, match=r"[Cc]onnection"):
            await redis.xadd("s", {"f": "v"})
        await redis.aclose()
    assert sent == 1


async def offered(bench: Bench) -> str:
    try:
        return (await bench.enqueue(job(payload=b"x" * 60_000)))[0]
    except BrokerUnavailable as e:
        return str(e)


async def test_full_server_drains(crashable: tuple[EmbeddedServer, Bench]) -> None:
    """Out of memory: new jobs are refused, those queued can be claimed, run and settled, and then new ones are taken."""
    _, bench = crashable
    await bench.serve("a")
    worker = await bench.worker()
    used = (await bench.redis.info("memory"))["used_memory"]
    await bench.redis.config_set("maxmemory", used + 3_000_000)
    taken = 0
    while (status := await offered(bench)) == "new":
        taken += 1
    assert "out of memory" in status
    assert taken > 10
    assert (await worker.beat()).alive
    done = 0
    while jobs := await bench.claimed(worker, room=4):
        assert await worker.mark(jobs)
        done += sum(await worker.settle([(j, b"ok") for j in jobs]))
    assert done == taken
    assert await bench.enqueue(job(payload=b"x" * 60_000)) == ["new"]


async def test_full_server_lets_the_dead_be_buried_and_jobs_be_given_back(
    crashable: tuple[EmbeddedServer, Bench],
) -> None:
    _, bench = crashable
    await bench.serve("a")
    worker, dead = await bench.worker(), await bench.worker("dead")
    await bench.enqueue(*(job() for _ in range(6)))
    ran = await bench.claimed(dead, room=2)
    await dead.mark(ran)
    held = await bench.claimed(worker)
    await bench.lapse(dead)
    await bench.redis.config_set("maxmemory", 1)
    assert await worker.release(held[:1]) == 1
    assert await worker.recover(held[2:])
    assert (await worker.reap(10**6, max_attempts=1)).dead_letters == 2
    waiting = job()
    with pytest.raises(BrokerUnavailable):
        await bench.enqueue(waiting)
    assert await bench.producer().cancel([(waiting.flow, held[0].job, held[0].job)]) == ["cancelled"]
    await bench.scripts("retire", bench.keys.vfms, ["a", "answer", 10, b"retired"])
    assert await worker.settle([(j, b"ok") for j in held[2:]]) == [True, True]
    assert await bench.depth() == 0
    await bench.redis.config_set("maxmemory", 0)


async def test_broker_unavailable_when_the_server_refuses_for_now(crashable: tuple[EmbeddedServer, Bench]) -> None:
    """Too few replicas, as after a failover: whoever waits for `BrokerUnavailable` goes on when it is over."""
    _, bench = crashable
    await bench.serve("a")
    await bench.redis.config_set("min-replicas-to-write", 1)
    with pytest.raises(BrokerUnavailable, match="NOREPLICAS"):
        await bench.enqueue(job())
    await bench.redis.config_set("min-replicas-to-write", 0)
    assert await bench.enqueue(job()) == ["new"]


async def test_broker_unavailable_when_the_server_is_a_replica(crashable: tuple[EmbeddedServer, Bench]) -> None:
    _, bench = crashable
    await bench.serve("a")
    await bench.redis.replicaof("127.0.0.1", str(free_port()))
    with pytest.raises(BrokerUnavailable):
        await bench.enqueue(job())
    await bench.redis.replicaof("NO", "ONE")
    assert await bench.enqueue(job()) == ["new"]


async def test_a_mistake_of_ours_is_not_hidden(bench: Bench) -> None:
    await bench.redis.set(bench.keys.leases, "not a sorted set", px=5_000)
    with pytest.raises(BrokerFault, match="WRONGTYPE"):
        await bench.worker()


async def test_names_of_backbones_do_not_meet(bench: Bench) -> None:
    other = Bench(bench.redis, bench.scripts)
    await bench.serve("a")
    producer = type(bench.producer())(bench.redis, bench.scripts, BACKBONE + "2", "client")
    assert [g.status for g in await producer.enqueue([job()])] == ["unknown"]
    assert await other.depth() == 0
