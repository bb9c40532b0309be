"""Batches from the order to the files: the application on a broker in memory, and a worker that answers texts with themselves."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fmplex_broker.errors import StoreUnavailable
from fmplex_broker.specs.vfm import VfmChange
from fmplex_broker.streams import connection
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_gateway.batches import calling, desk, feeder, window
from fmplex_gateway.batches.feeder import Feeder
from tests.support.batch_runs import ENDED, EchoWorker, Found, echoing, found, infer_line, infer_url, jsonl, rows
from tests.support.waiting import until
from tests.unit.gateway.site import Site, look_often, site, spec


class Office:
    """A gateway that takes batches, and what tests do with it."""

    def __init__(self, place: Site, worker: EchoWorker) -> None:
        self.place = place
        self.worker = worker

    async def upload(self, lines: Iterable[Any] | bytes, key: str | None = None) -> str:
        content = lines if isinstance(lines, bytes) else jsonl(lines)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        answer = await self.place.http.post(
            "/v1/files?purpose=batch&filename=a.jsonl", content=content, headers=headers
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def order(self, lines: Iterable[Any] | bytes, endpoint: str = infer_url("echo"), **more: Any) -> str:
        body = {"input_file_id": await self.upload(lines), "endpoint": endpoint, "completion_window": "24h", **more}
        answer = await self.place.ask("POST", "/v1/batches", body=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def show(self, batch: str) -> dict[str, Any]:
        shown: dict[str, Any] = (await self.place.ask("GET", f"/v1/batches/{batch}")).json()
        return shown

    async def reaches(self, batch: str, *statuses: str) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            shown = await self.show(batch)
            return shown if shown["status"] in statuses else None

        shown: dict[str, Any] = await until(look, f"the batch is {' or '.join(statuses)}", 30)
        return shown

    async def ended(self, batch: str) -> dict[str, Any]:
        return await self.reaches(batch, *ENDED)

    async def content(self, file: str | None) -> bytes:
        return b"" if file is None else (await self.place.ask("GET", f"/v1/files/{file}/content")).content

    async def files(self, shown: dict[str, Any]) -> tuple[Found, Found]:
        return found(await self.content(shown["output_file_id"])), found(await self.content(shown["error_file_id"]))


@asynccontextmanager
async def opened(folder: Path, **gateway: Any) -> AsyncIterator[Office]:
    async with site(folder, gateway) as place:
        features = {"head": {"kind": "features"}}
        await place.serve(
            *(spec(name, **features) for name in ("echo", "other", "slow")),
            spec("short", limits={"max_pending": 4}, **features),
        )
        consumer = await place.worker("w2")
        async with echoing(consumer) as worker:
            yield Office(place, worker)


@pytest.fixture
async def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    look_often(monkeypatch)
    async with opened(tmp_path) as office:
        yield office


async def test_a_batch_from_its_file_to_its_files(office: Office) -> None:
    lines = [infer_line(f"id-{i}", "fail" if i % 10 == 0 else f"text {i}") for i in range(300)]
    shown = await office.ended(await office.order(lines, metadata={"night": "1"}))
    assert (shown["status"], shown["errors"], shown["metadata"]) == ("completed", None, {"night": "1"})
    assert shown["request_counts"] == {"total": 300, "completed": 270, "failed": 30}
    output, errors = await office.files(shown)
    assert output == {f"id-{i}": (200, [{"text": f"text {i}"}]) for i in range(300) if i % 10}
    assert errors == {f"id-{i}": (500, "job_failed") for i in range(0, 300, 10)}
    assert office.worker.classes == {"offline": 300}
    assert shown["versions"] == [(await office.place.queue.registry.show("echo")).version]
    left = {p.name for p in (Path(office.place.app.state.files.store._storage.folder)).iterdir()}
    assert left == {shown["input_file_id"], shown["output_file_id"], shown["error_file_id"]}


async def test_every_time_is_told(office: Office) -> None:
    shown = await office.ended(await office.order([infer_line("a", "x")]))
    times = [shown[f"{word}_at"] for word in ("created", "in_progress", "finalizing", "completed")]
    assert times == sorted(times)
    assert shown["expires_at"] == shown["created_at"] + 86_400
    for word in ("failed", "expired", "cancelling", "cancelled"):
        assert shown[f"{word}_at"] is None
    assert (shown["object"], shown["completion_window"], shown["error_file_id"]) == ("batch", "24h", None)
    assert rows(await office.content(shown["output_file_id"]))[0]["line"] == 1


# --- states -----------------------------------------------------------------------------------------------------------


def held_back(office: Office, answered: int) -> None:
    """Let the worker have answers only to the first texts."""
    office.worker.hold = lambda text: int(text.split()[-1]) >= answered


def numbered(number: int) -> list[dict[str, Any]]:
    return [infer_line(f"id-{i}", f"text {i}") for i in range(number)]


async def counted(office: Office, batch: str, done: int) -> None:
    async def look() -> bool:
        counts = (await office.show(batch))["request_counts"]
        return bool(counts["completed"] + counts["failed"] >= done)

    await until(look, f"{done} lines are counted", 30)


async def test_counts_are_true_while_it_runs(office: Office) -> None:
    held_back(office, 20)
    batch = await office.order(numbered(50))
    await counted(office, batch, 20)
    shown = await office.show(batch)
    assert (shown["status"], shown["request_counts"]) == ("in_progress", {"total": 50, "completed": 20, "failed": 0})
    assert shown["versions"]
    assert shown["output_file_id"] is shown["error_file_id"] is None


async def test_cancelled_lines_are_in_the_error_file_and_answered_ones_in_the_other(office: Office) -> None:
    held_back(office, 20)
    batch = await office.order(numbered(400))
    await counted(office, batch, 20)
    for _ in range(2):
        answer = await office.place.ask("POST", f"/v1/batches/{batch}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
    shown = await office.ended(batch)
    assert shown["status"] == "cancelled"
    assert shown["request_counts"] == {"total": 400, "completed": 20, "failed": 380}
    assert (shown["cancelling_at"] <= shown["cancelled_at"], shown["expired_at"]) == (True, None)
    output, errors = await office.files(shown)
    assert output == {f"id-{i}": (200, [{"text": f"text {i}"}]) for i in range(20)}
    assert errors == {f"id-{i}": (None, "batch_cancelled") for i in range(20, 400)}
    answer = await office.place.ask("POST", f"/v1/batches/{batch}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert max(office.worker.ran.values()) == 1
    assert len(office.worker.ran) <= 20 + 256, "what was cancelled does not run"


async def test_a_batch_that_is_over_cannot_be_cancelled(office: Office) -> None:
    batch = await office.order(numbered(1))
    await office.ended(batch)
    for _ in range(2):
        answer = await office.place.ask("POST", f"/v1/batches/{batch}/cancel")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert (await office.show(batch))["status"] == "completed"


async def test_a_batch_that_was_only_just_ordered_is_cancelled(office: Office) -> None:
    for _ in range(5):
        batch = await office.order(numbered(3))
        answer = await office.place.ask("POST", f"/v1/batches/{batch}/cancel")
        assert answer.status_code in (200, 409)
        shown = await office.ended(batch)
        counts = shown["request_counts"]
        assert shown["status"] == ("cancelled" if answer.status_code == 200 else "completed")
        assert counts["total"] == counts["completed"] + counts["failed"]
        output, errors = await office.files(shown)
        assert len(output) + len(errors) == counts["total"]


async def test_what_was_not_answered_within_the_window(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    held_back(office, 20)
    batch = await office.order(numbered(300), completion_window="5m")
    await counted(office, batch, 20)
    now = desk.Clock.now
    monkeypatch.setattr(desk.Clock, "now", lambda self: now(self) + 301)
    shown = await office.ended(batch)
    assert (shown["status"], shown["completed_at"]) == ("expired", None)
    assert shown["request_counts"] == {"total": 300, "completed": 20, "failed": 280}
    output, errors = await office.files(shown)
    assert output == {f"id-{i}": (200, [{"text": f"text {i}"}]) for i in range(20)}
    assert errors == {f"id-{i}": (None, "batch_expired") for i in range(20, 300)}


async def test_the_deadline_of_a_job_is_the_end_of_the_window(office: Office) -> None:
    held_back(office, 0)
    batch = await office.order(numbered(1), completion_window="7d")
    await until(lambda: office.worker.ran, "it runs", 30)
    redis = office.place.queue.redis
    [(_, entry)] = await redis.xrange("{minilm}:q:offline:echo")
    shown = await office.show(batch)
    assert abs(int(entry[b"t"]) / 1000 - shown["expires_at"]) < 5
    office.worker.stop_holding()
    assert (await office.ended(batch))["status"] == "completed"


async def test_an_input_file_that_is_deleted_half_way(office: Office) -> None:
    held_back(office, 20)
    batch = await office.order(numbered(300))
    await counted(office, batch, 20)
    file = (await office.show(batch))["input_file_id"]
    assert (await office.place.ask("DELETE", f"/v1/files/{file}")).status_code == 200
    shown = await office.ended(batch)
    assert (shown["status"], shown["errors"]["data"][0]["code"]) == ("failed", "input_file_deleted")
    output, errors = await office.files(shown)
    assert output == {f"id-{i}": (200, [{"text": f"text {i}"}]) for i in range(20)}
    assert errors == {f"id-{i}": (None, "input_file_deleted") for i in range(20, 300)}

    async def gone() -> bool:
        return file not in office.place.app.state.files.store.names()

    await until(gone, "its bytes are gone too", 10)


async def test_a_vfm_that_is_removed_half_way(office: Office) -> None:
    held_back(office, 20)
    batch = await office.order(numbered(300))
    await counted(office, batch, 20)
    office.worker.stop_holding()
    await office.place.queue.registry.remove("echo", drain_s=0)
    shown = await office.ended(batch)
    assert shown["status"] == "completed"
    output, errors = await office.files(shown)
    assert len(output) >= 20
    assert set(errors.values()) == {(404, "unknown_vfm")}
    assert output.keys() | errors.keys() == {f"id-{i}" for i in range(300)}
    assert not output.keys() & errors.keys()


# --- files that are no batch, lines that are no calls -----------------------------------------------------------------


def duplicates() -> bytes:
    return jsonl([infer_line("a", "x"), infer_line("b", "x"), "", infer_line("a", "y")])


BAD_FILES = {
    "empty": (b"", "empty_file", None),
    "blank": (b"\n \r\n\n", "empty_file", None),
    "duplicate": (duplicates(), "duplicate_custom_id", 4),
    "gzip": (gzip.compress(duplicates()), "invalid_file", 1),
    "too many": (jsonl(infer_line(str(i), "x") for i in range(50_001)), "too_many_tasks", 50_001),
}


@pytest.mark.parametrize("case", BAD_FILES)
async def test_a_file_that_is_no_batch(office: Office, case: str) -> None:
    content, code, line = BAD_FILES[case]
    shown = await office.ended(await office.order(content))
    [error] = shown["errors"]["data"]
    assert (shown["status"], error["code"], error["line"]) == ("failed", code, line)
    assert shown["failed_at"]
    assert shown["output_file_id"] is shown["error_file_id"] is None
    assert not office.worker.ran


async def test_every_bad_line_is_its_own_fault(office: Office) -> None:
    good = infer_line("good", "text 1")
    long_id = "x" * 64
    lines = [
        b"\xef\xbb\xbf" + jsonl([infer_line("bom", "text 2")]).rstrip(b"\n") + b"\r", "", good,
        infer_line(long_id, "text 3"), infer_line("nul\0", "x"), "{", "[]", {"custom_id": "no-url", "body": {}},
        infer_line("other-url", "x") | {"url": "/v1/embeddings"}, infer_line("get", "x", method="GET"),
        infer_line("no-body", "x") | {"body": None},
        {"custom_id": "stream", "url": infer_url("echo"), "body": {"inputs": ["x"], "params": {"stream": True}}},
        {"custom_id": "n", "url": infer_url("echo"), "body": {"inputs": ["x"], "params": {"n": 2}}},
        {"custom_id": "odd", "url": infer_url("echo"), "body": {"inputs": ["x"], "nonsense": 1}},
        {"custom_id": "none", "url": infer_url("echo"), "body": {"inputs": []}},
        b'{"custom_id": "utf-8 \xff"}',
    ]  # fmt: skip
    shown = await office.ended(await office.order(lines))
    assert shown["status"] == "completed"
    output = found(await office.content(shown["output_file_id"]))
    assert output == {
        "bom": (200, [{"text": "text 2"}]), "good": (200, [{"text": "text 1"}]), long_id: (200, [{"text": "text 3"}])
    }  # fmt: skip
    bad = rows(await office.content(shown["error_file_id"]))
    told = {row["line"]: (row["custom_id"], (row["error"] or row["response"]["body"]["error"])["code"]) for row in bad}
    assert told == {
        5: (None, "invalid_custom_id"), 6: (None, "invalid_json_line"), 7: (None, "invalid_json_line"),
        8: ("no-url", "url_mismatch"), 9: ("other-url", "url_mismatch"), 10: ("get", "invalid_method"),
        11: ("no-body", "invalid_body"), 12: ("stream", "stream_not_supported"), 13: ("n", "n_not_supported"),
        14: ("odd", "invalid_input"), 15: ("none", "invalid_input"), 16: (None, "invalid_json_line"),
    }  # fmt: skip
    assert shown["request_counts"] == {"total": 15, "completed": 3, "failed": 12}


async def test_several_vfms_in_one_file_and_one_that_is_not_there(office: Office) -> None:
    vfms = ["echo", "other", "nobody"]
    lines = [infer_line(f"{vfm}-{i}", f"text {i}", vfm) for i in range(20) for vfm in vfms]
    shown = await office.ended(await office.order(lines, "/v1/vfms/{name}/infer"))
    output, errors = await office.files(shown)
    assert len(output) == 40
    assert errors == {f"nobody-{i}": (404, "unknown_vfm") for i in range(20)}


# --- what keeps a line from being answered now ------------------------------------------------------------------------


async def test_a_vfm_with_a_short_queue(office: Office) -> None:
    lines = [infer_line(f"id-{i}", f"text {i}", "short") for i in range(16)]
    shown = await office.ended(await office.order(lines, infer_url("short")))
    assert (shown["status"], shown["request_counts"]["completed"]) == ("completed", 16)


async def test_a_vfm_that_is_over_its_rate_holds_up_no_other_batch(office: Office) -> None:
    await office.place.queue.registry.change("slow", VfmChange.model_validate({"limits": {"rate": 0.5}}))
    slow = await office.order([infer_line(f"id-{i}", f"text {i}", "slow") for i in range(100)], infer_url("slow"))
    for _ in range(2):
        assert (await office.ended(await office.order(numbered(50))))["status"] == "completed"
    assert (await office.show(slow))["status"] == "in_progress"
    await office.place.queue.registry.change("slow", VfmChange.model_validate({"limits": {"rate": 1e6}}))
    shown = await office.ended(slow)
    assert (shown["status"], shown["request_counts"]["completed"]) == ("completed", 100)


async def test_lines_of_a_vfm_that_is_over_its_rate_do_not_ask_again_and_again(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    await office.place.queue.registry.change("slow", VfmChange.model_validate({"limits": {"rate": 0.5}}))
    asked, real = 0, calling.answer

    async def answer(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        return await real(*args)

    monkeypatch.setattr(calling, "answer", answer)
    lines = [infer_line(f"id-{i}", f"text {i}", "slow") for i in range(256)]
    batches = [await office.order(lines, infer_url("slow")) for _ in range(2)]
    await until(lambda: asked >= 8, "some have been asked for", 30)
    for _ in range(3):
        assert (await office.ended(await office.order(numbered(20))))["status"] == "completed"
    assert asked < 256, "the others wait in their turn"
    await office.place.queue.registry.change("slow", VfmChange.model_validate({"limits": {"rate": 1e6}}))
    for batch in batches:
        assert (await office.ended(batch))["request_counts"]["completed"] == 256


async def test_batches_that_stand_still_make_room_for_others(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "_MOST", 2)
    monkeypatch.setattr(feeder, "_STILL_S", 0.5)
    office.worker.hold = lambda text: text.startswith("held")
    lines = [infer_line(f"id-{i}", f"held {i}", "slow") for i in range(20)]
    still = [await office.order(lines, infer_url("slow")) for _ in range(3)]
    await until(lambda: len(office.place.app.state.feeder._courses) == 2, "there is no room left", 30)
    assert (await office.ended(await office.order(numbered(50))))["request_counts"]["completed"] == 50
    office.worker.stop_holding()
    for batch in still:
        shown = await office.ended(batch)
        assert (shown["status"], shown["request_counts"]["completed"]) == ("completed", 20)
        assert len((await office.files(shown))[0]) == 20


async def test_a_store_that_is_full_for_a_while(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    store, full = office.place.app.state.files.store, True
    real, tries = store.writing, []

    def writing(name: str) -> Any:
        if name.startswith("batch_") and full:
            tries.append(name)
            raise StoreUnavailable("there is no room")
        return real(name)

    batch_file = await office.upload(numbered(600))
    monkeypatch.setattr(store, "writing", writing)
    body = {"input_file_id": batch_file, "endpoint": infer_url("echo")}
    batch = (await office.place.ask("POST", "/v1/batches", body=body)).json()["id"]
    await until(lambda: len(tries) > 2, "it was tried", 30)
    assert (await office.place.ask("GET", "/readyz")).status_code == 200
    assert len(office.worker.ran) <= 2 * 256, "what cannot be written down is not asked for"
    full = False
    shown = await office.ended(batch)
    assert (shown["status"], shown["request_counts"]["completed"]) == ("completed", 600)
    assert max(office.worker.ran.values()) == 1


async def test_a_line_that_breaks_something_ends_no_other(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    real = calling.answer

    async def answer(queue: Any, url: str, body: dict[str, Any], asking: Any) -> Any:
        if body["inputs"] == ["text 7"]:
            raise ZeroDivisionError
        return await real(queue, url, body, asking)

    monkeypatch.setattr(calling, "answer", answer)
    shown = await office.ended(await office.order(numbered(20)))
    output, errors = await office.files(shown)
    assert (len(output), errors) == (19, {"id-7": (500, "internal")})


async def test_lines_that_a_broker_has_forgotten_are_asked_for_again(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "AGAIN_S", 1.0)
    held_back(office, 0)
    batch = await office.order(numbered(3))
    redis = office.place.queue.redis
    await until(lambda: len(office.worker.ran) == 3, "they run", 30)
    for key in [key async for key in redis.scan_iter("{minilm}:*")]:
        if b":q:offline:" in key or b":idem:" in key:
            await redis.delete(key)
    office.worker.stop_holding()
    shown = await office.ended(batch)
    assert (shown["status"], shown["request_counts"]["completed"]) == ("completed", 3)


# --- what the routes refuse -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"endpoint": "/v1/vfms/a/b/infer"}, 400, "endpoint"),
        ({"completion_window": "4m"}, 400, "completion_window"),
        ({"completion_window": "8d"}, 400, "completion_window"),
        ({"completion_window": "a day"}, 400, "completion_window"),
        ({"completion_window": "٢d"}, 400, "completion_window"),
        ({"metadata": {str(i): "x" for i in range(17)}}, 400, "metadata"),
        ({"metadata": {"a": "x" * 513}}, 400, "metadata.a"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"metadata": {"a": "\ud800"}}, 400, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "output_expires_after.seconds"),
        ({"input_file_id": "file-1"}, 400, "input_file_id"),
        ({"input_file_id": "file-" + "0" * 24}, 404, "id"),
        ({"nonsense": 1}, 400, "nonsense"),
    ],
)
async def test_an_order_that_cannot_be(office: Office, change: dict[str, Any], status: int, field: str) -> None:
    body = {"input_file_id": await office.upload(numbered(1)), "endpoint": infer_url("echo"), **change}
    answer = await office.place.http.post(
        "/v1/batches", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, field), answer.text
    assert (await office.place.ask("GET", "/v1/batches")).json()["data"] == []


async def test_the_output_of_a_batch_is_no_input(office: Office) -> None:
    shown = await office.ended(await office.order(numbered(1)))
    body = {"input_file_id": shown["output_file_id"], "endpoint": infer_url("echo")}
    answer = await office.place.ask("POST", "/v1/batches", body=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_file_id")


async def test_pages_of_batches(office: Office) -> None:
    made = []
    for _ in range(5):
        made.insert(0, await office.order(numbered(1)))
    first = (await office.place.ask("GET", "/v1/batches?limit=3")).json()
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (made[:3], True)
    assert (first["first_id"], first["last_id"], first["object"]) == (made[0], made[2], "list")
    second = (await office.place.ask("GET", f"/v1/batches?limit=3&after={made[2]}")).json()
    assert ([one["id"] for one in second["data"]], second["has_more"]) == (made[3:], False)
    for limit in ("0", "101", "x", "-1", ""):
        assert (await office.place.ask("GET", f"/v1/batches?limit={limit}")).status_code == 400
    assert (await office.place.ask("GET", "/v1/batches?after=batch_1")).status_code == 400


async def test_batches_belong_to_the_key_that_ordered_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    keys = [
        {"name": "mine", "key": "key-of-mine", "scopes": ["infer"], "models": ["echo"]},
        {"name": "yours", "key": "key-of-yours", "scopes": ["infer"]},
        {"name": "boss", "key": "key-of-the-boss", "scopes": ["admin"]},
    ]
    async with opened(tmp_path, keys=keys) as office:
        lines = [infer_line("a", "text 1"), infer_line("b", "text 2", "other"), infer_line("c", "text 3", "none")]
        file = await office.upload(lines, "key-of-mine")
        body = {"input_file_id": file, "endpoint": "/v1/vfms/{name}/infer"}
        for other in ("key-of-yours", "key-of-the-boss"):
            assert (await office.place.ask("POST", "/v1/batches", other, body)).status_code == 404
        batch = (await office.place.ask("POST", "/v1/batches", "key-of-mine", body)).json()["id"]

        async def ended() -> Any:
            shown = (await office.place.ask("GET", f"/v1/batches/{batch}", "key-of-mine")).json()
            return shown if shown["status"] in ENDED else None

        shown = await until(ended, "it ends", 30)
        for other in ("key-of-yours", "key-of-the-boss"):
            for method, path in (("GET", ""), ("POST", "/cancel")):
                answer = await office.place.ask(method, f"/v1/batches/{batch}{path}", other)
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_batch")
            assert (await office.place.ask("GET", "/v1/batches", other)).json()["data"] == []
            content = await office.place.ask("GET", f"/v1/files/{shown['output_file_id']}/content", other)
            assert content.status_code == 404
        answer = await office.place.ask("GET", f"/v1/files/{shown['error_file_id']}/content", "key-of-mine")
        assert found(answer.content) == {"b": (404, "unknown_vfm"), "c": (404, "unknown_vfm")}


async def test_a_gateway_that_is_stopped_gives_its_batches_back(tmp_path: Path, office: Office) -> None:
    held_back(office, 20)
    batch = await office.order(numbered(100))
    await until(lambda: len(office.worker.ran) == 100, "all are with the worker", 30)
    state = office.place.app.state
    await state.feeder.close()
    counts = (await office.show(batch))["request_counts"]
    assert counts == {"total": 100, "completed": 20, "failed": 0}, "what was answered is recorded"
    assert await office.place.queue.redis.zscore("{batches}:batches-open", batch) == 0
    queue = QueueClient(office.place.queue.redis, scripts=office.place.queue.scripts, spec_ttl_s=0)
    another = Feeder(queue, state.batches, state.files.list, state.files.store)
    office.worker.stop_holding()
    another.start()
    shown = await office.ended(batch)
    assert (shown["status"], shown["request_counts"]["completed"]) == ("completed", 100)
    assert max(office.worker.ran.values()) == 1, "nothing was cancelled"
    await another.close()


async def test_metrics_of_batches(office: Office) -> None:
    await office.ended(await office.order([infer_line("a", "text 1"), infer_line("b", "fail")]))
    held_back(office, 0)
    batch = await office.order(numbered(3))
    await office.reaches(batch, "in_progress")
    text = (await office.place.ask("GET", "/metrics")).text.splitlines()
    assert 'fmplex_batch_lines_total{outcome="completed"} 1.0' in text
    assert 'fmplex_batch_lines_total{outcome="failed"} 1.0' in text
    assert 'fmplex_batches{status="in_progress"} 1.0' in text


async def test_a_window_of_a_week_is_never_longer_than_a_job_may_be(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = desk.Clock.now
    monkeypatch.setattr(desk.Clock, "now", lambda self: now(self) - 2)  # it lags behind
    shown = await office.ended(await office.order(numbered(3), completion_window="7d"))
    assert (shown["status"], shown["request_counts"]["completed"]) == ("completed", 3)
