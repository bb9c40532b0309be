"""Tuning jobs for tests: who orders them, and workers that have them in hand."""

from __future__ import annotations

import time
from typing import Any

import redis.asyncio as aioredis

from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.specs.files import FileRecord, new_file_id
from fmplex_broker.specs.tune_records import Checkpoint, TuneProgress, TuneRecord, TuneStatus
from fmplex_broker.specs.tuning import Publish, TunePlace, TuneSpec, new_tune_id
from fmplex_broker.streams.connection import Scripts
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.keys import REGISTRY_BACKBONES
from fmplex_broker.streams.tune_owner import HeldTune, TuneOwner
from fmplex_broker.streams.tunes import Tunes

HERE = TunePlace(hosted="0123456789ab", device="cpu", threads=2)
ELSEWHERE = TunePlace(hosted="0123456789ab", device="cuda", threads=2)
MOST = 3  # attempts


class Orders(Tunes):
    """All tuning jobs, and short ways to say what a test wants to say."""

    def __init__(self, redis: aioredis.Redis, scripts: Scripts, backbone: str = "minilm") -> None:
        super().__init__(redis, scripts)
        self.redis = redis
        self.scripts = scripts
        self.files = FileList(redis)
        self.backbone = backbone

    async def known(self) -> None:
        """Let the backbone be known, as a worker that joins makes it."""
        info = BackboneInfo(name=self.backbone, model="m", hidden=8, max_tokens=128)
        await self.redis.hset(REGISTRY_BACKBONES, info.name, info.model_dump_json())

    async def file(self, owner: str = "me") -> str:
        name = new_file_id()
        record = FileRecord(
            id=name, owner=owner, bytes=1, created_at=1, expires_at=2, filename="lines.jsonl", purpose="batch"
        )
        await self.files.add(record)
        return name

    async def spec(self, owner: str = "me", **more: Any) -> TuneSpec:
        given = {"training_file": await self.file(owner), "publish": Publish(how="as", vfm="new")} | more
        return TuneSpec(id=new_tune_id(), owner=owner, backbone=self.backbone, model=self.backbone, **given)

    async def ordered(self, owner: str = "me", **more: Any) -> TuneRecord:
        return await self.add(await self.spec(owner, **more))

    async def queued(self, owner: str = "me", **more: Any) -> str:
        """Order a job whose files are in order; return its id."""
        record = await self.ordered(owner, **more)
        assert (await self.checked(record, examples=10)).status == "queued"
        return record.spec.id

    async def status(self, job: str, owner: str = "me") -> TuneStatus:
        return (await self.find(job, owner)).status

    async def said(self, job: str, owner: str = "me") -> list[str]:
        """Return the words of all its events, the oldest first."""
        return [event.message for event in (await self.events(job, owner, 1000, oldest_first=True))[0]]


class Hand(TuneOwner):
    """A worker that tunes."""

    async def take(self, *known: str, place: TunePlace = HERE, idle: bool = True) -> HeldTune | None:
        return await self.claim(place, idle=idle, max_attempts=MOST, known=known)

    async def took(self, *known: str, place: TunePlace = HERE, idle: bool = True) -> HeldTune:
        held = await self.take(*known, place=place, idle=idle)
        assert held is not None
        return held


def at(step: int, **more: Any) -> TuneProgress:
    return TuneProgress(step=step, steps=100, tokens=10 * step, **more)


def checkpoint(step: int, *, best: bool = False, name: str = "") -> Checkpoint:
    return Checkpoint(step=step, name=name or f"s{step}", created_at=int(time.time()), best=best, tokens=10 * step)
