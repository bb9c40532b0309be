"""Bytes in the broker: what a call's jobs share is there once; all is counted, capped, and free again however a job ends."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fmplex_broker.errors import QueueFull, TooLarge
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.vfm import Limits, VfmSpec
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.producer import ENTRY_BYTES, NewJob, Producer, stored_bytes
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import (
    CLASSES,
    INTERACTIVE,
    OFFLINE,
    Flow,
    Part,
    Request,
    SharedPayload,
    decode_request,
    encode_request,
    split,
)
from tests.contract.harness import BACKBONE, Bench, answer, job

SCHEMA = {"type": "object", "properties": {f"field_{n}": {"type": "string", "maxLength": n} for n in range(1, 1200)}}
PROMPT = "a long prompt " * 20_000


async def kept(bench: Bench) -> int:
    """Count the bytes of all values that belong to jobs, as they lie in the server."""
    total = 0
    async for key in bench.redis.scan_iter(bench.keys.prefix + "*"):
        match await bench.redis.type(key):
            case b"string":
                total += await bench.redis.strlen(key)
            case b"stream":
                entries = await bench.redis.xrange(key)
                total += sum(len(k) + len(v) for _, fields in entries for k, v in fields.items())
    return total


def shared(own: str, *parts: Part) -> SharedPayload:
    return SharedPayload(encode_request(Request(own, {})), parts)


def part(n: int, size: int = 5_000) -> Part:
    return Part.of("params", {"n": n, "filler": "x" * size})


# --- what is shared is there once -------------------------------------------------------------------------------------


async def test_one_schema_of_many_prompts_is_stored_once(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", head=Generation())
    worker = await bench.worker()
    size = len(json.dumps(SCHEMA))
    assert size > 50_000
    prompts = [f"prompt {n}" for n in range(300)]
    await session.submit("a", prompts, {"schema": SCHEMA, "temperature": 0.7})
    assert await kept(bench) < 2 * size + 500 * len(prompts)
    jobs = await bench.claimed(worker)
    requests = [decode_request(claimed.payload) for claimed in jobs]
    assert [r.input for r in requests] == prompts[: len(jobs)]
    assert all(r.params["schema"] == SCHEMA for r in requests)
    assert len({r.params["seed"] for r in requests}) == len(jobs)  # what is each one's own stays so
    assert len({id(r.params["schema"]) for r in requests}) == 1  # decoded once


async def test_many_texts_of_one_prompt_store_it_once(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", head=Generation())
    worker = await bench.worker()
    await session.submit("a", [PROMPT], {"temperature": 1.0}, n=100)
    assert await kept(bench) < 2 * len(PROMPT)
    requests = [decode_request(claimed.payload) for claimed in await bench.claimed(worker)]
    assert len(requests) == 100
    assert {r.input for r in requests} == {PROMPT}
    assert len({id(r.input) for r in requests}) == 1
    assert len({r.params["seed"] for r in requests}) == 100


async def test_several_prompts_of_several_texts_share_prompt_and_schema(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", head=Generation())
    worker = await bench.worker()
    prompts = [f"{n} {PROMPT}"[:50_000] for n in range(4)]
    await session.submit("a", prompts, {"schema": SCHEMA}, n=5)
    assert await kept(bench) < sum(map(len, prompts)) + 2 * len(json.dumps(SCHEMA))
    requests = [decode_request(claimed.payload) for claimed in await bench.claimed(worker)]
    assert [r.input for r in requests] == [p for p in prompts for _ in range(5)]
    assert all(r.params["schema"] == SCHEMA for r in requests)


async def test_what_only_one_job_has_or_is_small_is_not_shared(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", head=Generation())
    await session.submit("a", ["x"], {"schema": SCHEMA})
    await session.submit("a", ["x", "y"], {"max_tokens": 3}, n=2)
    assert not {name for name in await bench.names() if name.startswith("part:")}


async def test_an_idempotent_repeat_of_a_shared_call_adds_nothing(
    bench: Bench, session: QueueClient, other: QueueClient
) -> None:
    await bench.serve("a", head=Generation())
    await session.submit("a", ["x", "y"], {"schema": SCHEMA}, idempotency_key="k")
    before = await bench.counted()
    await other.submit("a", ["x", "y"], {"schema": SCHEMA}, idempotency_key="k")
    assert (await bench.depth(), await bench.counted()) == (2, before)


async def test_a_part_lives_as_long_as_the_last_job_that_needs_it(bench: Bench) -> None:
    await bench.serve("a")
    worker, one = await bench.worker(), part(1)
    short, long = (job(payload=shared(f"{ms}", one), timeout_ms=ms) for ms in (1_000, 90_000))
    await bench.enqueue(long)
    await bench.enqueue(short)
    key = bench.keys.part("a", one.id)
    assert await bench.redis.pttl(key) > 90_000
    first, second = await bench.claimed(worker)
    await worker.settle([(first, answer())])
    assert await bench.redis.exists(key)
    await worker.settle([(second, answer())])
    assert not await bench.redis.exists(key)


async def test_a_job_whose_part_has_gone_has_waited_too_long(bench: Bench) -> None:
    """As one whose large payload has gone: it comes empty, and is answered, not run. Later ones bring the part again."""
    await bench.serve("a")
    worker, one = await bench.worker(), part(1)
    await bench.enqueue(job(id="late", payload=shared("x", one)))
    await bench.redis.delete(bench.keys.part("a", one.id))  # as its TTL does
    [late] = await bench.claimed(worker)
    assert late.payload == b""
    await bench.enqueue(job(payload=shared("y", one)))
    [again] = await bench.claimed(worker)
    assert decode_request(again.payload).params["n"] == 1
    await worker.settle([(late, answer()), (again, answer())])
    assert (await bench.counted("a"), await bench.counted()) == (0, 0)


async def test_vfms_do_not_share_with_each_other(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker, one = await bench.worker(), part(1)
    await bench.enqueue(job("a", shared("x", one)), job("b", shared("x", one)))
    assert await bench.counted("a") == await bench.counted("b") > len(one.data)
    [mine] = [claimed for claimed in await bench.claimed(worker) if claimed.flow.vfm == "a"]
    await worker.settle([(mine, answer())])
    assert await bench.redis.exists(bench.keys.part("b", one.id))


# --- caps -------------------------------------------------------------------------------------------------------------


def spec(**limits: Any) -> VfmSpec:
    return VfmSpec(name="a", backbone=BACKBONE, head=Generation(), limits=Limits(**limits))


async def limit(bench: Bench, **limits: Any) -> None:
    """Serve the vFM `a` with these limits."""
    made = spec(**limits)
    await bench.serve("a", max_bytes=made.limits.max_pending_bytes)
    await bench.redis.hset(bench.keys.vfms, "a:spec", made.model_dump_json())


async def test_a_vfm_holds_so_many_bytes_and_takes_more_when_some_are_done(bench: Bench) -> None:
    await bench.serve("a", "b", max_bytes=10_000)
    worker = await bench.worker()
    fits = job(payload=b"x" * 4_000)
    assert await bench.enqueue(fits, job(payload=b"x" * 4_000), job(payload=b"x" * 4_000)) == [
        "new",
        "new",
        "full_bytes",
    ]
    assert await bench.enqueue(job("b", payload=b"x" * 4_000)) == ["new"]  # a cap of each
    assert await bench.enqueue(fits) == ["dup"]
    [got] = await bench.producer().enqueue([job(payload=b"x" * 4_000)])
    assert (got.status, got.most) == ("full_bytes", 10_000)
    await worker.settle([((await bench.claimed(worker))[0], answer())])
    assert await bench.enqueue(job(payload=b"x" * 4_000)) == ["new"]


async def test_what_could_never_fit_is_told_apart(bench: Bench) -> None:
    await bench.serve("a", max_bytes=10_000)
    assert await bench.enqueue(job(payload=b"x" * 10_001)) == ["large_bytes"]
    call = [NewJob(Flow("a", INTERACTIVE), b"x", 1, 9_000, call_bytes=11_000)]
    assert [got.status for got in await bench.producer().enqueue(call)] == ["large_bytes"]


async def test_a_backbone_holds_so_many_bytes_whosever_they_are(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    await bench.redis.hset(bench.keys.vfms, ":max_bytes", 9_000)
    assert await bench.enqueue(*(job(v, payload=b"x" * 4_000) for v in "aba")) == ["new", "new", "full_backbone"]
    assert await bench.enqueue(job("b", payload=b"x" * 9_000)) == ["large_backbone"]
    await worker.settle([(claimed, answer()) for claimed in await bench.claimed(worker)])
    assert await bench.enqueue(job(payload=b"x" * 4_000)) == ["new"]


async def test_the_cap_of_a_backbone_is_its_workers(bench: Bench) -> None:
    await bench.serve("a")
    await bench.worker("w1")
    assert await bench.redis.hget(bench.keys.vfms, ":max_bytes") == b"1000000000"


async def test_a_call_is_taken_or_refused_as_a_whole(bench: Bench, session: QueueClient) -> None:
    await limit(bench, max_pending_bytes=100_000)
    await session.submit("a", ["x" * 50_000])
    before = await bench.counted()
    with pytest.raises(QueueFull, match=r"100000 bytes \(limits.max_pending_bytes of 'a'\)") as caught:
        await session.submit("a", ["y" * 20_000] * 4)
    assert caught.value.retry_after > 0
    assert (await bench.depth(), await bench.counted(), await bench.counted("a")) == (1, before, before)


async def test_callers_are_told_which_cap(bench: Bench, session: QueueClient) -> None:
    await limit(bench, max_call_bytes=50_000, max_pending_bytes=60_000)
    with pytest.raises(TooLarge, match=r"at most 50000 \(limits.max_call_bytes\)") as caught:
        await session.submit("a", ["x" * 10_000] * 5)
    assert caught.value.field == "inputs"
    await limit_again(bench, max_pending_bytes=40_000)
    with pytest.raises(TooLarge, match=r"at most 40000 \(limits.max_pending_bytes\)"):
        await session.submit("a", ["x" * 10_000] * 5)
    await limit_again(bench)
    await bench.redis.hset(bench.keys.vfms, ":max_bytes", 30_000)
    with pytest.raises(TooLarge, match=r"30000 bytes \(max_pending_bytes of its backbone"):
        await session.submit("a", ["x" * 10_000] * 4)
    await session.submit("a", ["x" * 10_000])
    with pytest.raises(QueueFull, match=r"30000 bytes \(max_pending_bytes of its backbone"):
        await session.submit("a", ["x" * 10_000] * 2)
    assert await bench.depth() == 1


async def limit_again(bench: Bench, **limits: Any) -> None:
    await bench.redis.hset(bench.keys.vfms, "a:spec", spec(**limits).model_dump_json())


async def test_limits_that_change_hold_at_once(bench: Bench) -> None:
    await bench.serve("a")
    await bench.scripts("alter", bench.keys.vfms, ["a", 2, "{}", 100, 1.0, 0, 5_000])
    assert await bench.enqueue(job(payload=b"x" * 4_000), job(payload=b"x" * 4_000)) == ["new", "full_bytes"]


async def test_large_batches_go_in_several_scripts(bench: Bench) -> None:
    """Else one call would make the server hold hundreds of megabytes beside what it keeps."""
    await bench.serve("a")
    sizes: list[int] = []

    async def spy(name: str, key: str, args: list[Any]) -> Any:
        sizes.append(sum(len(arg) for arg in args if isinstance(arg, bytes)))
        return await bench.scripts(name, key, args)

    scripts: Any = spy
    producer = Producer(bench.redis, scripts, BACKBONE)
    assert len(await producer.enqueue([job(payload=b"x" * 700_000) for _ in range(20)])) == 20
    assert max(sizes) < 5_000_000
    assert len({claimed.job for claimed in await bench.claimed(await bench.worker())}) == 20


# --- whatever ends a job frees its bytes ------------------------------------------------------------------------------


async def settled(bench: Bench, jobs: list[NewJob]) -> None:
    worker = await bench.worker("w")
    held = await bench.claimed(worker, interactive=50, offline=50)
    assert await worker.settle([(claimed, answer()) for claimed in held]) == [True] * len(jobs)


async def cancelled(bench: Bench, jobs: list[NewJob]) -> None:
    await bench.producer().cancel([(j.flow, j.job, j.idem) for j in jobs])


async def buried(bench: Bench, jobs: list[NewJob]) -> None:
    living, dead = await bench.worker("living"), await bench.worker("dead")
    await dead.mark(await bench.claimed(dead, interactive=50, offline=50))
    await bench.lapse(dead)
    assert (await living.reap(10**6, max_attempts=1)).dead_letters == len(jobs)


async def retired(bench: Bench, jobs: list[NewJob]) -> None:
    for vfm in "ab":
        assert (await bench.scripts("retire", bench.keys.vfms, [vfm, "answer", 99, answer()]))[0] == b"gone"


@pytest.mark.parametrize("key", ["k", "5 a:1|b|", None])
async def test_a_long_deadline_does_not_keep_the_key_of_a_job_that_is_done(bench: Bench, key: str | None) -> None:
    await bench.serve("a")
    worker, day_ms, one = await bench.worker(), 86_400_000, part(1)
    sent = job(payload=shared("x", one), key=key, timeout_ms=day_ms)
    await bench.enqueue(sent)
    idem = f"{bench.keys.prefix}idem:{sent.idem}"
    assert await bench.redis.pttl(idem) > day_ms
    [held] = await bench.claimed(worker)
    assert held.part_sizes == {one.id: len(one.data)}
    await worker.settle([(held, answer())])
    assert 50_000 < await bench.redis.pttl(idem) <= 60_000  # as long as the reply can be asked for again
    assert await bench.enqueue(sent) == ["done"]
    assert (await bench.counted("a"), await bench.counted()) == (0, 0)


@pytest.mark.parametrize("end", [settled, cancelled, buried, retired])
async def test_bytes_are_free_again(bench: Bench, end: Callable[[Bench, list[NewJob]], Awaitable[None]]) -> None:
    await bench.serve("a", "b")
    one, two = part(1), part(2)
    payloads = [b"", b"x" * 100, b"x" * 70_000, shared("x", one), shared("y", one, two), shared("z" * 70_000, two)]
    jobs = [job(v, p, cls=c) for p in payloads for v in "ab" for c in CLASSES]
    await bench.enqueue(*jobs)
    assert await bench.counted("a") == await bench.counted("b") == stored_bytes([p for p in payloads for _ in CLASSES])
    assert await bench.counted() == 2 * await bench.counted("a")
    await end(bench, jobs)
    assert (await bench.counted("a"), await bench.counted("b"), await bench.counted()) == (0, 0, 0)
    assert not {name for name in await bench.names() if name.startswith(("part:", "blob:"))}
    assert not [field for field in await bench.redis.hkeys(bench.keys.vfms) if b":part:" in field]


class Walk:
    """Everything that can happen to jobs, in any order; what is counted is at any time what is there."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.rng = random.Random(seed)
        self.parts = [part(n, 2_000 * n) for n in range(1, 5)]
        self.sent: list[NewJob] = []
        self.held: list[tuple[str, Claimed]] = []
        self.lives = 0

    async def begin(self) -> None:
        await self.bench.serve("a", max_bytes=60_000)
        await self.bench.serve("b")
        await self.bench.redis.hset(self.bench.keys.vfms, ":max_bytes", 150_000)
        self.workers = {name: await self.bench.worker(name) for name in ("w1", "w2")}
        await self.bench.redis.hset(self.bench.keys.vfms, ":max_bytes", 150_000)

    async def enqueue(self) -> None:
        jobs = []
        for _ in range(self.rng.randint(1, 6)):
            mine = self.rng.sample(self.parts, self.rng.randint(0, 2))
            own = encode_request(Request("x" * self.rng.choice([1, 300, 66_000]), {}))
            payload = SharedPayload(own, tuple(mine)) if mine else own
            jobs.append(job(self.rng.choice("ab"), payload, cls=self.rng.choice(CLASSES), key=f"{self.rng.random()}"))
        again = [self.rng.choice(self.sent)] if self.sent and self.rng.random() < 0.4 else []
        await self.bench.enqueue(*jobs, *again)
        self.sent += jobs

    async def claim(self) -> None:
        name = self.rng.choice(sorted(self.workers))
        got = await self.workers[name].claim({INTERACTIVE: self.rng.randint(1, 5), OFFLINE: self.rng.randint(0, 3)})
        self.held += [(name, claimed) for claimed in got.jobs]

    def _some(self) -> dict[str, list[Claimed]]:
        taken: dict[str, list[Claimed]] = {}
        for name, claimed in self.rng.sample(self.held, self.rng.randint(0, len(self.held))):
            self.held.remove((name, claimed))
            taken.setdefault(name, []).append(claimed)
        return taken

    async def settle(self) -> None:
        for name, jobs in self._some().items():
            done = [(claimed, answer()) for claimed in jobs]
            await self.workers[name].settle(done)
            assert not any(await self.workers[name].settle(done))  # a repeat frees nothing more

    async def release(self) -> None:
        for name, jobs in self._some().items():
            await self.workers[name].release(jobs)

    async def cancel(self) -> None:
        if self.sent:
            unlucky = self.rng.sample(self.sent, min(len(self.sent), 3))
            await self.bench.producer().cancel([(j.flow, j.job, j.idem) for j in unlucky])

    async def die(self) -> None:
        name = self.rng.choice(sorted(self.workers))
        dead, living = self.workers.pop(name), next(iter(self.workers.values()))
        mine = [claimed for owner, claimed in self.held if owner == name]
        await dead.mark(mine[: self.rng.randint(0, len(mine))])
        self.held = [(owner, claimed) for owner, claimed in self.held if owner != name]
        await self.bench.lapse(dead)
        while (await living.reap(10**6, max_attempts=2, budget=3)).more:
            pass
        self.lives += 1
        self.workers[f"w{self.lives + 2}"] = await self.bench.worker(f"w{self.lives + 2}")
        await self.bench.redis.hset(self.bench.keys.vfms, ":max_bytes", 150_000)

    async def retire(self) -> None:
        await self.bench.scripts("retire", self.bench.keys.vfms, ["a", "answer", 3, answer()])
        if not await self.bench.redis.hexists(self.bench.keys.vfms, "a"):
            await self.bench.serve("a", max_bytes=60_000)

    async def lose(self) -> None:
        """A TTL ends, a group is destroyed."""
        await self.bench.redis.delete(self.bench.keys.part("a", self.rng.choice(self.parts).id))
        if await self.bench.redis.exists(self.bench.keys.queue(Flow("b", INTERACTIVE))):
            await self.bench.redis.xgroup_destroy(self.bench.keys.queue(Flow("b", INTERACTIVE)), "w")

    async def step(self) -> None:
        deeds = [self.enqueue] * 4 + [self.claim] * 3 + [self.settle] * 2
        deeds += [self.release, self.cancel, self.die, self.retire, self.lose]
        await self.rng.choice(deeds)()
        await self.counts_are_right()

    async def counts_are_right(self) -> None:
        total, by_id = 0, {p.id: p for p in self.parts}
        for vfm in "ab":
            mine, needed = 0, set()
            for cls in CLASSES:
                for _, fields in await self.bench.redis.xrange(self.bench.keys.queue(Flow(vfm, cls))):
                    own, *refs = fields[b"s"].decode().split()
                    blob = await self.bench.redis.strlen(self.bench.keys.blob(fields[b"j"].decode()))
                    assert int(own) - ENTRY_BYTES in (len(fields[b"d"]), blob)
                    mine += int(own)
                    needed |= {ref.split(":")[0] for ref in refs}
            mine += sum(len(by_id[name].data) for name in needed)
            assert await self.bench.counted(vfm) == mine
            users = [
                f for f in await self.bench.redis.hkeys(self.bench.keys.vfms) if f.startswith(f"{vfm}:part:".encode())
            ]
            assert {f.decode().split(":")[2] for f in users} == needed
            total += mine
        assert await self.bench.counted() == total <= 150_000
        assert await self.bench.counted("a") <= 60_000


@pytest.mark.parametrize("seed", range(6))
async def test_what_is_counted_is_what_is_there(bench: Bench, seed: int) -> None:
    walk = Walk(bench, seed)
    await walk.begin()
    for _ in range(40):
        await walk.step()


def test_sizes_count_what_is_shared_once() -> None:
    one, two = part(1), part(2)
    payloads = [shared("x", one), shared("y", one, two), b"z" * 10]
    own = sum(len(split(p)[0]) + ENTRY_BYTES for p in payloads)
    assert stored_bytes(payloads) == own + len(one.data) + len(two.data)
