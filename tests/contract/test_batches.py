"""The records of batches: what is ordered, who feeds it, and that nobody who has lost it can change anything any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fmplex_broker.errors import Busy, Conflict, InvalidInput, UnknownBatch, UnknownFile
from fmplex_broker.specs.batches import ENDED, NEXT, BatchRecord, Order, Status, new_batch_id
from fmplex_broker.specs.files import FileRecord, new_file_id
from fmplex_broker.streams import batch_list
from fmplex_broker.streams.batch_list import BatchList, Held, Lost, Progress
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.keys import BATCHES
from tests.contract.harness import Bench


class Office(BatchList):
    """A list of batches, and short ways to say what a test wants to say."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.redis, bench.scripts)
        self.redis = bench.redis
        self.files = FileList(bench.redis)

    async def file(self, owner: str = "me") -> str:
        name = new_file_id()
        record = FileRecord(
            id=name, owner=owner, bytes=1, created_at=1, expires_at=2, filename="lines.jsonl", purpose="batch"
        )
        await self.files.add(record)
        return name

    async def ordered(self, owner: str = "me", file: str | None = None, **more: Any) -> BatchRecord:
        name = file or await self.file(owner)
        return await self.create(
            Order(id=new_batch_id(), owner=owner, endpoint="/v1/embeddings", input_file_id=name, **more)
        )

    async def one(self) -> Held:
        [held] = await self.take(1)
        return held

    async def lapse(self, batch: str) -> None:
        """Let a lease have run out: exactly what time passing does to its key."""
        await self.redis.zadd(f"{BATCHES}batches-open", {batch: 1}, xx=True)

    async def status(self, batch: BatchRecord) -> Status:
        return (await self.find(batch.order.id, batch.order.owner)).status

    async def to(self, held: Held, *statuses: Status) -> None:
        for status in statuses:
            assert await self.move(held.record.order.id, held.holder, status) == status


@pytest.fixture
def office(bench: Bench) -> Office:
    return Office(bench)


def progress(done: bytes = b"\x01", completed: int = 1, failed: int = 0, *versions: str) -> Progress:
    return Progress(done, completed, failed, versions or ("v1",))


def batch(held: Held) -> str:
    return held.record.order.id


# --- what is ordered --------------------------------------------------------------------------------------------------


async def test_what_is_ordered_is_found_as_it_was_ordered(office: Office) -> None:
    made = await office.ordered(completion_window="90m", metadata={"night": "ü\0"}, models=("a*", "b"))
    found = await office.find(made.order.id, "me")
    assert found == made
    assert (found.status, found.order.metadata, found.order.models) == ("validating", {"night": "ü\0"}, ("a*", "b"))
    now = (await office.redis.time())[0]
    assert now - 5 <= found.created_at <= now + 1
    assert found.expires_at == found.created_at + 5400


async def test_ordering_twice_is_ordering_once(office: Office) -> None:
    made = await office.ordered()
    again = await office.create(made.order)
    assert again == made
    assert (await office.page("me"))[0] == [made]


async def test_a_batch_of_another_owner_is_not_there(office: Office) -> None:
    made = await office.ordered("me")
    for name, owner in (
        (made.order.id, "you"),
        (new_batch_id(), "me"),
        ("batch_x", "me"),
        ("", "me"),
        ("\udc80", "me"),
    ):
        with pytest.raises(UnknownBatch):
            await office.find(name, owner)
        with pytest.raises(UnknownBatch):
            await office.cancel(name, owner)
    assert await office.page("you") == ([], False)
    assert await office.status(made) == "validating"


async def test_a_file_that_is_gone_cannot_be_ordered(office: Office) -> None:
    with pytest.raises(UnknownFile):
        await office.ordered(file=new_file_id())
    assert await office.page("me") == ([], False)


async def test_too_many_open_batches_of_one_owner(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_list, "MOST_OPEN", 2)
    await office.ordered()
    second = await office.ordered()
    with pytest.raises(Busy, match="2 open batches"):
        await office.ordered()
    await office.ordered("you")
    for held in await office.take(9):
        if held.record == second.model_copy(update={"takes": 1}):
            await office.to(held, "failed")
    await office.ordered()


async def test_pages_newest_first(office: Office) -> None:
    made = []
    for _ in range(5):
        made.insert(0, await office.ordered())
        await asyncio.sleep(0.002)  # ids have the time in ms
    assert await office.page("me", 2) == (made[:2], True)
    assert await office.page("me", 2, made[1].order.id) == (made[2:4], True)
    assert await office.page("me", 2, made[3].order.id) == (made[4:], False)
    assert await office.page("me", 5) == (made, False)
    with pytest.raises(InvalidInput):
        await office.page("me", 2, "batch_1")


async def test_an_open_batch_holds_its_file_until_it_ends(office: Office) -> None:
    made = await office.ordered()
    file = made.order.input_file_id
    assert await office.files.prune(3) == []
    held = await office.one()
    await office.to(held, "in_progress", "finalizing")
    assert await office.files.held(file)
    await office.to(held, "completed")
    assert not await office.files.held(file)
    assert await office.files.prune(3) == [file]


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_a_batch_has_one_holder(office: Office) -> None:
    made = [await office.ordered() for _ in range(3)]
    first, second = await asyncio.gather(office.take(2), office.take(2))
    assert sorted(batch(held) for held in first + second) == sorted(one.order.id for one in made)
    assert len({held.holder for held in first + second}) == 3
    assert await office.take(9) == []


async def test_the_lease_of_a_holder_who_is_not_heard_of_runs_out(office: Office) -> None:
    await office.ordered()
    [first] = await office.take(1, lease_ms=1)
    await asyncio.sleep(0.01)
    second = await office.one()
    assert batch(first) == batch(second)
    assert first.holder != second.holder
    now, leases = await office.renew({batch(first): first.holder})
    assert leases[batch(first)].status == "lost"
    assert abs(now - (await office.redis.time())[0]) < 5
    assert (await office.renew({batch(second): second.holder}))[1][batch(second)].status == "validating"


async def test_a_renewed_lease_does_not_run_out(office: Office) -> None:
    await office.ordered()
    [held] = await office.take(1, lease_ms=1)
    await office.renew({batch(held): held.holder})
    await asyncio.sleep(0.01)
    assert await office.take(1) == []


async def test_a_lease_that_ran_out_is_renewed_if_nobody_came(office: Office) -> None:
    await office.ordered()
    held = await office.one()
    await office.lapse(batch(held))
    assert (await office.renew({batch(held): held.holder}))[1][batch(held)].status == "validating"
    assert await office.take(1) == []


async def test_a_clock_that_is_set_back_does_not_keep_a_batch_from_being_taken(office: Office) -> None:
    await office.ordered()
    held = await office.one()
    at = (await office.redis.time())[0] * 1000 + 3_600_000
    await office.redis.zadd(f"{BATCHES}batches-open", {batch(held): at})
    assert [batch(again) for again in await office.take(9)] == [batch(held)]


async def test_the_renewal_says_that_the_input_is_gone(office: Office) -> None:
    made = await office.ordered()
    held = await office.one()
    assert (await office.renew({batch(held): held.holder}))[1][batch(held)].input_there
    await office.files.remove(made.order.input_file_id, "me")
    assert not (await office.renew({batch(held): held.holder}))[1][batch(held)].input_there


async def test_what_is_given_back_is_taken_at_once_with_all_that_is_done(office: Office) -> None:
    await office.ordered()
    held = await office.one()
    await office.to(held, "in_progress")
    await office.record(batch(held), held.holder, progress(b"\xff\x01", 8, 1), 0, ["a", "b"])
    await office.give_back({batch(held): held.holder})
    again = await office.one()
    assert (again.done, again.parts) == (b"\xff\x01", ("a", "b"))
    assert (again.record.completed, again.record.failed, again.record.versions) == (8, 1, ("v1",))


async def test_what_is_given_back_last_is_taken_after_those_that_wait(office: Office) -> None:
    await office.ordered()
    held = await office.one()
    waits = await office.ordered()
    now = int((await office.redis.time())[0])
    assert await office.count_waiting(now) == 1
    await office.give_back({batch(held): held.holder}, last=True)
    assert await office.count_waiting(now + 60) == 2
    assert [batch(await office.one()) for _ in range(2)] == [waits.order.id, batch(held)]


async def test_takes_are_counted_until_the_batch_comes_on(office: Office) -> None:
    await office.ordered()
    for takes in (1, 2, 3):
        held = await office.one()
        assert held.record.takes == takes
        await office.lapse(batch(held))
    held = await office.one()
    await office.to(held, "in_progress")
    await office.give_back({batch(held): held.holder})
    assert (await office.one()).record.takes <= 1


async def test_a_record_that_cannot_be_read_keeps_no_other_from_being_taken(office: Office) -> None:
    broken, fine = await office.ordered(), await office.ordered()
    await office.redis.hset(f"{BATCHES}batch:{broken.order.id}", "status", "odd")
    assert [batch(held) for held in await office.take(9)] == [fine.order.id]


# --- fences -----------------------------------------------------------------------------------------------------------


async def test_who_has_lost_a_batch_changes_nothing(office: Office) -> None:
    made = await office.ordered()
    old = await office.one()
    await office.to(old, "in_progress")
    await office.lapse(batch(old))
    new = await office.one()
    with pytest.raises(Lost):
        await office.record(batch(old), old.holder, progress(), 0, ["p"])
    for status in ("finalizing", "cancelled", "failed"):
        with pytest.raises(Lost):
            await office.move(batch(old), old.holder, status)
    await office.give_back({batch(old): old.holder}, over=True)
    assert await office.status(made) == "in_progress"
    assert (await office.renew({batch(new): new.holder}))[1][batch(new)].status == "in_progress"
    await office.record(batch(new), new.holder, progress(), 0, ["q"])
    await office.lapse(batch(new))
    assert (await office.one()).parts == ("q",)


async def test_recording_twice_is_recording_once(office: Office) -> None:
    await office.ordered()
    held = await office.one()
    await office.to(held, "in_progress")
    for _ in range(2):  # the answer to the first was lost
        await office.record(batch(held), held.holder, progress(), 0, ["a", "b"])
    for _ in range(2):
        await office.record(batch(held), held.holder, progress(b"\x03", 2), 2, ["c"])
    await office.lapse(batch(held))
    assert (await office.one()).parts == ("a", "b", "c")


async def test_whoever_knows_of_other_parts_than_the_server_is_refused(office: Office) -> None:
    """A server that died may have forgotten the last: what its rows were must be asked for again."""
    await office.ordered()
    held = await office.one()
    await office.to(held, "in_progress")
    await office.record(batch(held), held.holder, progress(), 0, ["a"])
    for known in (0, 2, 3):
        with pytest.raises(Lost):
            await office.record(batch(held), held.holder, progress(b"\x07", 3), known, ["c"])
    await office.lapse(batch(held))
    again = await office.one()
    assert (again.parts, again.done) == (("a",), b"\x01")


@pytest.mark.parametrize("status", ["validating", "finalizing", "completed"])
async def test_lines_are_recorded_only_while_they_run(office: Office, status: Status) -> None:
    await office.ordered()
    held = await office.one()
    way: dict[str, list[Status]] = {
        "validating": [],
        "finalizing": ["in_progress", "finalizing"],
        "completed": ["in_progress", "finalizing", "completed"],
    }
    await office.to(held, *way[status])
    with pytest.raises(Lost):
        await office.record(batch(held), held.holder, progress(), 0, ["a"])


# --- states -----------------------------------------------------------------------------------------------------------

WAYS: dict[Status, list[Status]] = {
    "validating": [],
    "in_progress": ["in_progress"],
    "finalizing": ["in_progress", "finalizing"],
    "completed": ["in_progress", "finalizing", "completed"],
    "expired": ["in_progress", "finalizing", "expired"],
    "failed": ["failed"],
    "cancelling": ["in_progress", "cancelling"],
    "cancelled": ["cancelling", "cancelled"],
}


@pytest.mark.parametrize("now", WAYS)
async def test_a_batch_goes_where_it_may_and_nowhere_else(office: Office, now: Status) -> None:
    for to in WAYS:
        made = await office.ordered()
        held = next(held for held in await office.take(9) if batch(held) == made.order.id)
        await office.to(held, *WAYS[now])
        got = await office.move(batch(held), held.holder, to)
        assert got == (to if to in NEXT.get(now, ()) else now)
        found = await office.find(batch(held), "me")
        assert found.status == got
        assert getattr(found, f"{got}_at" if got != "validating" else "created_at") is not None


@pytest.mark.parametrize("now", WAYS)
async def test_cancel_in_every_state_and_twice(office: Office, now: Status) -> None:
    made = await office.ordered()
    held = await office.one()
    await office.to(held, *WAYS[now])
    for _ in range(2):
        if now in ENDED - {"cancelled"}:
            with pytest.raises(Conflict, match=now):
                await office.cancel(batch(held), "me")
        else:
            wanted = "cancelling" if now in ("validating", "in_progress") else now
            assert (await office.cancel(batch(held), "me")).status == wanted
    assert (await office.find(made.order.id, "me")).cancelling_at is not None or now not in (
        "validating",
        "in_progress",
    )


async def test_what_changes_with_the_state(office: Office) -> None:
    await office.ordered()
    held = await office.one()
    await office.move(batch(held), held.holder, "in_progress", total=3)
    await office.move(batch(held), held.holder, "finalizing", ending="expired")
    errors = [{"code": "c", "message": "m", "line": 2, "param": None}]
    await office.move(batch(held), held.holder, "expired", output_file_id="o", errors=errors)
    found = await office.find(batch(held), "me")
    assert (found.total, found.ending, found.output_file_id, found.error_file_id) == (3, "expired", "o", None)
    assert [error.model_dump() for error in found.errors] == errors
    shown = found.shown()
    assert shown["errors"] == {"object": "list", "data": errors}
    assert shown["request_counts"] == {"total": 3, "completed": 0, "failed": 0}


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_what_is_over_is_taken_no_more_and_leaves_its_record(office: Office) -> None:
    made = await office.ordered()
    held = await office.one()
    await office.to(held, "in_progress")
    await office.record(batch(held), held.holder, progress(), 0, ["a"])
    await office.to(held, "finalizing", "completed")
    assert await office.count_open() == {"completed": 1}
    await office.lapse(batch(held))
    again = await office.one()
    assert (again.record.status, again.parts) == ("completed", ("a",))  # its parts are still to be deleted
    await office.give_back({batch(again): again.holder}, over=True)
    assert not await office.count_open()
    await office.lapse(batch(held))
    assert await office.take(9) == []
    assert (await office.find(made.order.id, "me")).completed == 1
    left = {key.decode().removeprefix(BATCHES) async for key in office.redis.scan_iter(f"{BATCHES}*")}
    own = {f"batch:{made.order.id}", "batches:me"}
    assert {name for name in left if "file" not in name} == own
    assert 29 * 86_400_000 < await office.redis.pttl(f"{BATCHES}batch:{made.order.id}") <= 30 * 86_400_000


async def test_a_thousand_open_batches_are_listed_ten_pages_long(office: Office) -> None:
    file = await office.file()
    made = {(await office.ordered(file=file)).order.id for _ in range(1000)}
    found: list[str] = []
    more = True
    while more:
        page, more = await office.page("me", 100, found[-1] if found else "")
        found += [record.order.id for record in page]
    assert len(found) == 1000
    assert set(found) == made
    assert sorted(found, reverse=True) == found
