"""The list of files: whose they are, pages of them, and what an open batch keeps from expiring."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio.client import Pipeline

from fmplex_broker.errors import InvalidInput, UnknownFile
from fmplex_broker.specs.files import FileRecord, derived_file_id, new_file_id
from fmplex_broker.streams import file_list
from fmplex_broker.streams.file_list import FileList
from tests.contract.harness import Bench


@pytest.fixture
def files(bench: Bench) -> FileList:
    return FileList(bench.redis)


def record(at: int = 1_000, owner: str = "team-a", **more: Any) -> FileRecord:
    what = {"id": derived_file_id(at, owner), "bytes": 3, "filename": "x.jsonl", "purpose": "batch", **more}
    return FileRecord(owner=owner, created_at=at, **{"expires_at": at + 100, **what})


async def ids(files: FileList, owner: str = "team-a", limit: int = 100, after: str = "", **more: Any) -> list[str]:
    return [found.id for found in (await files.page(owner, limit, after, **more))[0]]


async def test_a_file_is_its_owners(files: FileList) -> None:
    mine = record()
    await files.add(mine)
    await files.add(mine)
    assert await files.find(mine.id, "team-a") == mine
    assert await ids(files) == [mine.id]
    for file, owner in ((mine.id, "team-b"), (new_file_id(), "team-a"), ("", "team-a"), ("file-\0", "team-a")):
        with pytest.raises(UnknownFile, match=r"^No such File object: .*GET /v1/files") as caught:
            await files.find(file, owner)
        assert caught.value.field == "id"
        with pytest.raises(UnknownFile):
            await files.remove(file, owner)
    assert await ids(files, "team-b") == []
    await files.remove(mine.id, "team-a")
    assert await ids(files) == []
    with pytest.raises(UnknownFile):
        await files.find(mine.id, "team-a")


async def test_pages_by_age_in_both_orders(files: FileList) -> None:
    made = [record(at, purpose="batch_output" if at % 2 else "batch") for at in range(1, 8)]
    for one in (made[3], *made[:3], *made[4:]):
        await files.add(one)
    await files.add(record(4, "team-b"))
    oldest_first = [one.id for one in made]
    for order, all_of_them in (("desc", oldest_first[::-1]), ("asc", oldest_first)):
        seen: list[str] = []
        while True:
            found, more = await files.page("team-a", 3, seen[-1] if seen else "", order=order)  # type: ignore[arg-type]
            seen += [one.id for one in found]
            if not more:
                break
            assert len(found) == 3
        assert seen == all_of_them
    assert await ids(files, purpose="batch") == [one.id for one in made[::-1] if one.purpose == "batch"]
    assert await ids(files, limit=2, after=made[5].id, purpose="batch_output") == [made[4].id, made[2].id]


async def test_whoever_deletes_what_a_page_shows_gets_the_next_page(files: FileList) -> None:
    """As `for file in client.files.list(): client.files.delete(file.id)` does."""
    for at in range(1, 8):
        await files.add(record(at))
    after, seen = "", 0
    while True:
        found, more = await files.page("team-a", 3, after)
        for one in found:
            await files.remove(one.id, "team-a")
            seen, after = seen + 1, one.id
        if not more:
            break
    assert (seen, await ids(files)) == (7, [])


async def test_a_page_after_what_is_no_file(files: FileList) -> None:
    for after in ("file-1", "batch_1", "(", "\0", "x" * 10_000):
        with pytest.raises(InvalidInput) as caught:
            await files.page("team-a", 3, after)
        assert caught.value.field == "after"


async def test_more_than_a_round_trip_reads(files: FileList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_list, "_AT_ONCE", 10)
    made = [record(at, expires_at=5_000) for at in range(1, 32)]
    for one in made:
        await files.add(one)
    found, more = await files.page("team-a", 25)
    assert ([one.id for one in found], more) == ([one.id for one in made[:5:-1]], True)
    assert await files.known([one.id for one in made] + [new_file_id()]) == {one.id for one in made}
    assert len(await files.prune(5_000)) == 31
    assert (await ids(files), len(await files.going())) == ([], 31)


# --- what expires -----------------------------------------------------------------------------------------------------


async def test_what_an_open_batch_reads_does_not_expire(files: FileList) -> None:
    held, other, young = record(1), record(2), record(3, expires_at=1_000)
    for one in (held, other, young):
        await files.add(one)
    await files.hold(held.id, "batch-1")
    await files.hold(held.id, "batch-2")
    assert await files.prune(101) == []
    assert await files.prune(102) == [other.id]
    for batch in ("batch-1", "batch-1"):
        await files.release(held.id, batch)
        assert await files.held(held.id)
        assert await files.prune(500) == []
    await files.release(held.id, "batch-2")
    assert not await files.held(held.id)
    assert await files.prune(500) == [held.id]
    assert await ids(files) == [young.id]


async def test_its_owner_may_delete_what_a_batch_reads(files: FileList) -> None:
    one = record()
    await files.add(one)
    await files.hold(one.id, "batch-1")
    await files.remove(one.id, "team-a")
    assert await files.going() == [one.id]
    await files.release(one.id, "batch-1")
    assert await files.prune(1e12) == []


async def test_a_batch_that_takes_a_file_while_it_expires_has_it_or_does_not(files: FileList) -> None:
    """Whoever holds a file first and then finds it keeps it."""
    for at in range(1, 41):
        one = record(at)
        await files.add(one)

        async def take(file: str = one.id) -> bool:
            await files.hold(file, "batch-1")
            try:
                await files.find(file, "team-a")
            except UnknownFile:
                await files.release(file, "batch-1")
                return False
            return True

        taken, pruned = await asyncio.gather(take(), files.prune(1e12))
        assert not (taken and pruned)
        there = bool(await files.known([one.id]))
        assert there == (not pruned)
        assert not taken or there


async def test_a_batch_that_takes_a_file_at_the_last_moment_keeps_it(
    files: FileList, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, looked = record(), Pipeline.exists
    await files.add(one)

    async def and_then_held(self: Any, key: str) -> Any:
        found = await looked(self, key)
        await files.hold(one.id, "batch-1")
        return found

    monkeypatch.setattr(Pipeline, "exists", and_then_held)
    assert await files.prune(1e12) == []
    assert await files.find(one.id, "team-a") == one


async def test_bytes_that_are_still_to_go_are_remembered(files: FileList) -> None:
    removed, expired = record(1), record(2)
    for one in (removed, expired):
        await files.add(one)
    await files.remove(removed.id, "team-a")
    await files.prune(1e12)
    assert await files.going() == sorted([removed.id, expired.id])
    await files.gone(removed.id)
    assert await files.going() == [expired.id]
