"""Tuning jobs under random faults: workers that die, stop and come back, answers that are lost or late, owners who ask for this
and that. Whatever happens, one worker at a time is believed, nothing that was saved is lost, everything is said and counted
once, and every job ends."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress

import pytest

from fmplex_broker.errors import BrokerUnavailable, Conflict
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.tune_owner import HeldTune, TuneLost
from tests.contract.harness import BACKBONE, Bench
from tests.contract.test_tune_owner import Broken, Fleet
from tests.support.tunes import HERE, Hand, Orders, at, checkpoint

STEPS = 12  # of a job
MOST = 1000  # attempts: none shall fail


class Trainer:
    """A worker that trains as a pure function of what it was given: a step more, a checkpoint at every third."""

    def __init__(self, fleet: Fleet, consumer: Consumer, rng: random.Random) -> None:
        self._fleet = fleet
        self.consumer = consumer
        self._rng = rng
        self._hand = Hand(fleet.bench.redis, fleet.bench.scripts, BACKBONE, consumer.worker)
        self.held: HeldTune | None = None
        self._step = 0
        self._late: list[Broken] = []
        self.alive = True  # else it is a zombie, which does not know yet

    def _maybe_cut(self, name: str) -> Hand:
        if self._rng.random() > 0.15:
            return self._hand
        self._late.append(Broken(self._fleet.bench.scripts, name, late=self._rng.random() < 0.5))
        self._hand._scripts = self._late[-1]
        return self._hand

    async def act(self, saved: dict[str, int]) -> None:
        """Do the next thing. `saved`: by job, the last checkpoint that the broker has confirmed."""
        self._hand._scripts = self._fleet.bench.scripts
        if self._late and self._rng.random() < 0.3:
            await self._late.pop(0).arrive()
        with suppress(BrokerUnavailable):
            if self.held is None:
                self.held = await self._maybe_cut("tune_claim").claim(HERE, idle=True, max_attempts=MOST)
                if self.held is not None:
                    assert self.alive
                    last = self.held.record.last
                    self._step = last.step if last else 0
                    assert self._step >= saved.get(self.held.id, 0)
                return
            try:
                await self._train(self.held, saved)
            except TuneLost:
                assert not self.alive or not (await self.consumer.beat()).alive
                self.held = None

    async def _train(self, held: HeldTune, saved: dict[str, int]) -> None:
        hand = self._maybe_cut("tune_save")
        if self._step < STEPS:
            self._step += 1
            held.say(f"{self.consumer.worker}/{held.take} step {self._step}", data={"step": self._step})
        made = checkpoint(self._step, name=f"{self._step}-{held.take}") if self._step % 3 == 0 else None
        if self._step == STEPS:
            await hand.finish(held, "succeeded", progress=at(self._step), checkpoint=made, published=("new", "v1"))
            self.held = None
        else:
            got = await hand.save(held, at(self._step), made)
            assert self.alive, "a zombie is not believed"
            saved[held.id] = max([saved.get(held.id, 0)] + [c.step for c in held.checkpoints])
            if got.asked:
                await hand.release(held, at(self._step))
                self.held = None


async def fault(fleet: Fleet, trainers: list[Trainer], rng: random.Random) -> None:
    trainer = rng.choice(trainers)
    if not trainer.alive:
        return
    kind = rng.choice(["dies", "dies in a unit", "leaves"])
    if kind == "leaves":
        await trainer.consumer.leave()
    else:
        if kind == "dies in a unit" and trainer.held is not None:
            await trainer.consumer.mark([], tuning=trainer.held.id)
        await fleet.dies(trainer.consumer)
    trainer.alive = False  # and goes on as if nothing had happened, as after SIGSTOP
    trainers.append(Trainer(fleet, (await fleet.worker())[0], rng))


@pytest.mark.parametrize("seed", range(4))
async def test_any_faults(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    orders = Orders(bench.redis, bench.scripts, BACKBONE)
    await orders.known()
    fleet = Fleet(bench, orders)
    jobs = [await orders.queued(rng.choice(["me", "you"])) for _ in range(4)]
    owners = {job: owner for owner in ("me", "you") for job in [r.spec.id for r in (await orders.page(owner))[0]]}
    trainers = [Trainer(fleet, (await fleet.worker())[0], rng) for _ in range(2)]
    saved: dict[str, int] = {}
    for turn in range(2000):
        if all([(await orders.find(job, owners[job])).ended for job in jobs]):
            break
        if turn < 300 and rng.random() < 0.06:
            await fault(fleet, trainers, rng)
        if turn < 300 and rng.random() < 0.1:
            with suppress(Conflict):
                await orders.ask(job := rng.choice(jobs), owners[job], rng.choice(["pause", "resume"]))
        if turn >= 300:
            for job in jobs:
                with suppress(Conflict):
                    await orders.ask(job, owners[job], "resume")
        for trainer in rng.sample(trainers, len(trainers)):
            await trainer.act(saved)
    for job in jobs:
        record = await orders.find(job, owners[job])
        assert (record.status, record.progress.tokens, record.vfm) == ("succeeded", 10 * STEPS, "new")
        assert [c.step for c in record.checkpoints] == [STEPS - 3, STEPS]
        said = Counter(event.message for event in (await orders.events(job, owners[job], 10_000))[0] if event.data)
        assert set(said.values()) == {1}
        assert {int(word.split()[-1]) for word in said} == set(range(1, STEPS + 1))
    await trainers[-1].act(saved)
    assert await orders.redis.smembers(f"{{{BACKBONE}}}:tunes:taken") == set()
    assert await orders.files.prune(3) != []
    assert not [key async for key in orders.redis.scan_iter("*holders:*")]
