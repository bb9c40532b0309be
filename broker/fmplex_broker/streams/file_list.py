"""The list of files: their records in Redis, by owner and by the time they were made, and which of them open batches and tuning
jobs read.

Everything of files and batches lies in one slot; keys begin with `{batches}:`.

| key | type | content |
|---|---|---|
| `files` | hash | file -> its record |
| `files:<owner>`, `files:<owner>:<purpose>` | zset, all scores 0 | files of an owner; ids sort by the time they were made |
| `files-expiring` | zset | file -> when it expires, in seconds since 1970 |
| `files-going` | set | files that are in no list any more, and whose bytes are still to be deleted |
| `holders:<file>` | set | open batches and tuning jobs that read the file |
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from redis.exceptions import WatchError

from fmplex_broker.errors import InvalidInput, UnknownFile
from fmplex_broker.specs.files import FileRecord, Purpose, is_file_id
from fmplex_broker.streams.connection import Client, broker_errors
from fmplex_broker.streams.keys import BATCHES

Order: TypeAlias = Literal["asc", "desc"]
_FILES = f"{BATCHES}files"
_EXPIRING = f"{BATCHES}files-expiring"
_GOING = f"{BATCHES}files-going"
_AT_ONCE = 500  # records a round trip; more would hold the event loop of whoever asks


def _holders(file: str) -> str:
    return f"{BATCHES}holders:{file}"


def _list(owner: str, purpose: Purpose | None = None) -> str:
    """Return the key of the list of an owner's files, of one purpose or of all."""
    return f"{_FILES}:{owner}" if purpose is None else f"{_FILES}:{owner}:{purpose}"


class FileList:
    """The records of all files. A file of another owner looks exactly like one that is not there. Raises as `broker_errors`
    does."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis

    async def add(self, record: FileRecord) -> None:
        """Add a file, whose bytes are in the store already. Again changes nothing."""
        async with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(_FILES, record.id, record.model_dump_json())
            pipe.zadd(_EXPIRING, {record.id: record.expires_at})
            for purpose in (None, record.purpose):
                pipe.zadd(_list(record.owner, purpose), {record.id: 0})
            await pipe.execute()

    async def find(self, file: str, owner: str) -> FileRecord:
        """Read the record of a file. Raises `UnknownFile`."""
        raw = None
        if is_file_id(file):
            async with broker_errors():
                raw = await self._redis.hget(_FILES, file)
        record = None if raw is None else FileRecord.model_validate_json(raw)
        if record is None or record.owner != owner:
            raise UnknownFile.of(file)
        return record

    async def page(
        self, owner: str, limit: int = 100, after: str = "", *, order: Order = "desc", purpose: Purpose | None = None
    ) -> tuple[list[FileRecord], bool]:
        """Read the first `limit` files of an owner, the newest first unless `order` is "asc", that come after a file (which may
        be gone); True if there are more. Raises `InvalidInput` for an `after` that no file can have."""
        if after and not is_file_id(after):
            raise InvalidInput(f"{after[:64]!r} is not the id of a file; give the last one of a page", field="after")
        key = _list(owner, purpose)
        async with broker_errors():
            if order == "asc":
                found = await self._redis.zrangebylex(key, f"({after}" if after else "-", "+", 0, limit + 1)
            else:
                found = await self._redis.zrevrangebylex(key, f"({after}" if after else "+", "-", 0, limit + 1)
        return await self._records(found[:limit]), len(found) > limit

    async def remove(self, file: str, owner: str) -> None:
        """Remove a file from the list, also one that is held; its bytes are `going` then. Raises `UnknownFile`."""
        record = await self.find(file, owner)
        async with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            _remove(pipe, record)
            await pipe.execute()

    async def hold(self, file: str, reader: str) -> None:
        """Note that an open batch or tuning job reads a file: it does not expire meanwhile. Look for the file afterwards: it
        may be gone."""
        async with broker_errors():
            await self._redis.sadd(_holders(file), reader)

    async def release(self, file: str, reader: str) -> None:
        """Note that it does not read a file any more. Again changes nothing."""
        async with broker_errors():
            await self._redis.srem(_holders(file), reader)

    async def held(self, file: str) -> bool:
        """Tell whether anything open reads a file."""
        async with broker_errors():
            return bool(await self._redis.exists(_holders(file)))

    async def prune(self, now: float) -> list[str]:
        """Remove from the list the files that have expired at `now` (seconds since 1970) and that nothing open reads; return
        their ids. Their bytes are `going` then."""
        async with broker_errors():
            expired = await self._redis.zrangebyscore(_EXPIRING, "-inf", now)
        gone = []
        for start in range(0, len(expired), _AT_ONCE):
            for record in await self._records(expired[start : start + _AT_ONCE]):
                if await self._remove_unless_held(record):
                    gone.append(record.id)
        return gone

    async def going(self) -> list[str]:
        """Return the files whose bytes are still to be deleted."""
        async with broker_errors():
            return sorted(file.decode() for file in await self._redis.smembers(_GOING))

    async def gone(self, file: str) -> None:
        """Note that the bytes of a file have been deleted."""
        async with broker_errors():
            await self._redis.srem(_GOING, file)

    async def known(self, files: list[str]) -> set[str]:
        """Return which of these ids are in the list, of whatever owner."""
        there: set[str] = set()
        for start in range(0, len(files), _AT_ONCE):
            part = files[start : start + _AT_ONCE]
            async with broker_errors():
                raw = await self._redis.hmget(_FILES, part)
            there.update(file for file, record in zip(part, raw, strict=True) if record is not None)
        return there

    # --- inner ---

    async def _records(self, files: list[bytes]) -> list[FileRecord]:
        records = []
        for start in range(0, len(files), _AT_ONCE):
            async with broker_errors():
                raw = await self._redis.hmget(_FILES, files[start : start + _AT_ONCE])
            records += [FileRecord.model_validate_json(record) for record in raw if record is not None]
        return records

    async def _remove_unless_held(self, record: FileRecord) -> bool:
        holders = _holders(record.id)
        async with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            await pipe.watch(holders)
            if await pipe.exists(holders):
                return False
            pipe.multi()
            _remove(pipe, record)
            try:
                await pipe.execute()
            except WatchError:  # it was taken meanwhile
                return False
        return True


def _remove(pipe: Client, record: FileRecord) -> None:
    pipe.hdel(_FILES, record.id)
    pipe.zrem(_EXPIRING, record.id)
    pipe.sadd(_GOING, record.id)
    for purpose in (None, record.purpose):
        pipe.zrem(_list(record.owner, purpose), record.id)
