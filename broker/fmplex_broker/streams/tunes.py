"""Tuning jobs, as those see them who order and ask: their records in Redis, fleet-wide by owner.

A record lies in the slot of its backbone, where the lease of its worker fences it (`tune_owner.py`); the list of its owner says
on which. Keys: `keys.py`. Times are the server's.
"""

from __future__ import annotations

import time

from fmplex_broker.errors import Busy, Conflict, InvalidInput, UnknownFile, UnknownTune
from fmplex_broker.specs.tune_records import Checkpoint, TuneError, TuneEvent, TuneRecord, Wish
from fmplex_broker.specs.tuning import TuneSpec, checkpoint_id, is_tune_id, oldest_tune_id
from fmplex_broker.streams.catalog import Catalog
from fmplex_broker.streams.connection import Arg, Client, Scripts, broker_errors
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.keys import REGISTRY_TUNES, Keys
from fmplex_broker.streams.tune_events import event_place, read_event
from fmplex_broker.streams.tune_records import read_tunes, tidy

MOST_OPEN = 100  # of an owner, on a backbone
CHECK_MS = 30_000
_SETTLED_S = 3_600.0  # what is listed for longer and has no record will not get one
_SWEPT = 16  # ids of an owner that are looked at when he orders
_CAN = {"pause": "is queued or running", "resume": "is paused", "cancel": "has not ended"}


class Tunes:
    """The records of all tuning jobs. One of another owner looks exactly like one that is not there. Raises as `broker_errors`
    does."""

    def __init__(self, redis: Client, scripts: Scripts) -> None:
        self._redis = redis
        self._scripts = scripts
        self._files = FileList(redis)

    # --- for who orders ---

    async def add(self, spec: TuneSpec) -> TuneRecord:
        """Add a tuning job, whose files are still to be looked through; again changes nothing. It holds its files until it ends.

        Raises `Conflict` while workers of its backbone live and none of them tunes, `UnknownFile`, and `Busy` when its owner has
        too many open ones.
        """
        await self._sweep(spec.owner)
        async with broker_errors():  # first: a record that is in no list could not be found
            await self._redis.zadd(REGISTRY_TUNES + spec.owner, {_listed(spec): 0})
        args: list[Arg] = [spec.id, spec.owner, spec.model_dump_json(), repr(spec.weight), MOST_OPEN]
        state = (await self._scripts("tune_add", Keys(spec.backbone).vfms, args)).decode()
        if state != "ok":
            await self._unlist(spec)
            raise _refusal(state, spec)
        for file in await self._hold(spec):
            await self._scripts("tune_drop", Keys(spec.backbone).vfms, [spec.id, spec.owner])
            await self._release(spec)
            await self._unlist(spec)
            raise UnknownFile.of(file)
        return await self.find(spec.id, spec.owner)

    async def find(self, job: str, owner: str) -> TuneRecord:
        """Read the record of a tuning job. Raises `UnknownTune`."""
        record = None
        if is_tune_id(job):
            async with broker_errors():
                listed = await self._redis.zrangebylex(REGISTRY_TUNES + owner, f"[{job} ", f"({job}!", 0, 1)
            record = (await read_tunes(self._redis, [_split(name) for name in listed]) or [None])[0]
        if record is None:
            raise UnknownTune.of(job)
        return record

    async def page(self, owner: str, limit: int = 20, after: str = "") -> tuple[list[TuneRecord], bool]:
        """Read the first `limit` tuning jobs of an owner, the newest first, that were made before the job `after`; True if there
        are more. Raises `InvalidInput` for an `after` that no tuning job can have."""
        if after and not is_tune_id(after):
            raise InvalidInput(
                f"{after[:64]!r} is not the id of a tuning job; give the last one of a page", field="after"
            )
        found: list[TuneRecord] = []
        before = f"({after} " if after else "+"
        while len(found) <= limit:
            async with broker_errors():
                listed = await self._redis.zrevrangebylex(REGISTRY_TUNES + owner, before, "-", 0, limit + 1)
            if not listed:
                break
            found += [r for r in await read_tunes(self._redis, [_split(name) for name in listed]) if r is not None]
            before = "(" + listed[-1].decode()
        return found[:limit], len(found) > limit

    async def ask(self, job: str, owner: str, wish: Wish) -> TuneRecord:
        """Pause, resume or cancel a tuning job, at once; a worker that has it in hand keeps what was learnt and gives it back. To
        cancel again changes nothing. Raises `UnknownTune`, and `Conflict` in a state in which that cannot be."""
        backbone = (await self.find(job, owner)).spec.backbone
        state, status = await self._scripts("tune_ask", Keys(backbone).vfms, [job, wish])
        if state != b"ok":
            raise Conflict(
                f"tuning job {job} is {status.decode() or 'gone'}; one can {wish} it while it {_CAN[wish]}",
                field="status",
            )
        await tidy(self._redis, backbone)
        return await self.find(job, owner)

    async def events(
        self, job: str, owner: str, limit: int = 20, after: str = "", *, oldest_first: bool = False
    ) -> tuple[list[TuneEvent], bool]:
        """Read `limit` events of a tuning job, the newest first, that are older than the event `after` (an id); True if there are
        more. `oldest_first`: the other way round, those that are newer than `after`. Raises `UnknownTune`, `InvalidInput`."""
        place = event_place(after) if after else ""
        backbone = (await self.find(job, owner)).spec.backbone
        args: list[Arg] = [job, place, limit + 1, int(oldest_first)]
        entries = await self._scripts("tune_events", Keys(backbone).vfms, args)
        read = [read_event(entry, dict(zip(values[::2], values[1::2], strict=True))) for entry, values in entries]
        return read[:limit], len(read) > limit

    async def checkpoints(
        self, job: str, owner: str, limit: int = 10, after: str = ""
    ) -> tuple[list[Checkpoint], bool]:
        """Return the first `limit` checkpoints of a tuning job that are kept, the newest first, after the checkpoint `after` (an
        id); True if there are more. Raises `UnknownTune`, and `InvalidInput` for an `after` that is not kept."""
        kept = (await self.find(job, owner)).checkpoints[::-1]
        ids = [checkpoint_id(job, one.step) for one in kept]
        if after and after not in ids:
            raise InvalidInput(
                f"tuning job {job} keeps no checkpoint {after[:64]!r}; ask for the first page", field="after"
            )
        rest = kept[ids.index(after) + 1 :] if after else kept
        return list(rest[:limit]), len(rest) > limit

    # --- for who looks through files ---

    async def take_unchecked(self, most: int, lease_ms: int = CHECK_MS) -> list[TuneRecord]:
        """Take tuning jobs of all backbones whose files nobody looks through now, for `lease_ms`. Who takes longer finds the same
        as who comes then; either may say it. `checks` of a record counts how often it was taken."""
        found: list[TuneRecord] = []
        for backbone in await Catalog(self._redis).backbones():
            if len(found) < most:
                ids = await self._scripts("tune_take", Keys(backbone).vfms, [lease_ms, most - len(found)])
                records = await read_tunes(self._redis, [(job.decode(), backbone) for job in ids])
                found += [record for record in records if record is not None]
            await tidy(self._redis, backbone)
        for record in found:  # whoever added it may have died before it did
            await self._hold(record.spec)
        return found

    async def checked(self, record: TuneRecord, error: TuneError | None = None, examples: int = 0) -> TuneRecord:
        """Say what was found in the files of a tuning job: an `error` with which it fails, else how many `examples`, and it waits
        for a worker. Changes nothing for one in any other state. Returns what it is afterwards."""
        spec = record.spec
        told, words = ("", "") if error is None else (error.model_dump_json(), error.message)
        await self._scripts("tune_checked", Keys(spec.backbone).vfms, [spec.id, told, words, examples])
        await tidy(self._redis, spec.backbone)
        return await self.find(spec.id, spec.owner)

    # --- inner ---

    async def _hold(self, spec: TuneSpec) -> list[str]:
        """Let a job hold its files until it ends; return those that are not there."""
        for file in spec.files:
            await self._files.hold(file, spec.id)
        there = await self._files.known(list(spec.files))
        now = (await read_tunes(self._redis, [(spec.id, spec.backbone)]))[0]
        if now is None or now.ended:  # meanwhile
            await self._release(spec)
        return [file for file in spec.files if file not in there]

    async def _release(self, spec: TuneSpec) -> None:
        for file in spec.files:
            await self._files.release(file, spec.id)

    async def _unlist(self, spec: TuneSpec) -> None:
        async with broker_errors():
            await self._redis.zrem(REGISTRY_TUNES + spec.owner, _listed(spec))

    async def _sweep(self, owner: str) -> None:
        """Take the oldest jobs of an owner off his list whose records have gone."""
        key = REGISTRY_TUNES + owner
        async with broker_errors():
            settled = f"({oldest_tune_id(time.time() - _SETTLED_S)}"
            listed = await self._redis.zrangebylex(key, "-", settled, 0, _SWEPT)
        records = await read_tunes(self._redis, [_split(name) for name in listed])
        gone = [name for name, record in zip(listed, records, strict=True) if record is None]
        if gone:
            async with broker_errors():
                await self._redis.zrem(key, *gone)


def _listed(spec: TuneSpec) -> str:
    return f"{spec.id} {spec.backbone}"


def _split(name: bytes) -> tuple[str, str]:
    job, _, backbone = name.decode().partition(" ")
    return job, backbone


def _refusal(state: str, spec: TuneSpec) -> Exception:
    if state == "off":
        return Conflict(
            f"no worker of backbone {spec.backbone!r} tunes; set enabled = true under [worker.tuning] in the fleet file, and "
            "start its workers again",
            field="model",
        )
    return Busy(
        f"{spec.owner!r} has {MOST_OPEN} open tuning jobs on {spec.backbone!r}; wait until one has ended, or cancel one",
        retry_after=60.0,
    )
