"""/v1/files: in OpenAI's shape, each file its key's, and nothing half done whatever fails on the way."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fsspec.implementations.local import LocalFileOpener

from fmplex_broker.errors import BrokerUnavailable, StoreUnavailable
from fmplex_broker.packages.files import FileStore
from fmplex_broker.specs.batches import new_batch_id
from fmplex_broker.specs.files import LIFE_S, FileRecord, derived_file_id, new_file_id
from fmplex_broker.streams.file_list import FileList
from fmplex_gateway import protocol, receiving
from fmplex_gateway.files import off_loop
from fmplex_gateway.files.keeping import Files, expiring
from tests.support.waiting import until_soon, wait_until
from tests.unit.gateway.serving import Serving, answer, request, serving, status
from tests.unit.gateway.site import Site, site

CONTENT = b'{"custom_id": "1"}\n' * 100
LIMIT = 100_000
KEYS = {
    "keys": [
        {"name": "a", "key": "key-of-a-team", "scopes": ["infer"]},
        {"name": "b", "key": "key-of-another", "scopes": ["infer"]},
        {"name": "ops", "key": "key-of-an-admin", "scopes": ["admin"]},
    ]
}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path, {"max_file_bytes": LIMIT}) as place:
        yield place


def stored(folder: Path) -> list[str]:
    """Names of all that lies in the store of files."""
    there = folder / "store" / "files"
    return sorted(path.name for path in there.iterdir()) if there.exists() else []


async def upload(
    place: Site, content: bytes = CONTENT, name: str = "x.jsonl", key: str | None = None
) -> dict[str, Any]:
    response = await post(place, content, name, key)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def post(place: Site, content: bytes = CONTENT, name: str = "x.jsonl", key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return await place.http.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": (name, content)}, headers=headers
    )


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


# --- what clients do ---------------------------------------------------------------------------------------------------


async def test_upload_show_content_delete(place: Site, tmp_path: Path) -> None:
    before = int(time.time())
    made = await upload(place, name="requests ü.jsonl")
    assert made == {
        "id": made["id"], "object": "file", "bytes": len(CONTENT), "created_at": made["created_at"],
        "expires_at": made["created_at"] + LIFE_S, "filename": "requests ü.jsonl", "purpose": "batch", "status": "processed",
    }  # fmt: skip
    assert before <= made["created_at"] <= time.time()
    path = f"/v1/files/{made['id']}"
    assert (await place.ask("GET", path)).json() == made
    content = await place.ask("GET", f"{path}/content")
    assert (content.status_code, content.content) == (200, CONTENT)
    assert content.headers["content-disposition"] == "attachment; filename*=utf-8''requests%20%C3%BC.jsonl"
    assert stored(tmp_path) == [made["id"]]
    deleted = await place.ask("DELETE", path)
    assert (deleted.status_code, deleted.json()) == (200, {"id": made["id"], "object": "file", "deleted": True})
    assert stored(tmp_path) == []
    for method, where in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
        assert error_of(await place.ask(method, where)) == (404, "unknown_file", "id")


async def test_a_body_that_is_the_file(place: Site) -> None:
    query = {"purpose": "batch", "filename": "raw.jsonl", "expires_after[seconds]": "3600"}
    made = (await place.http.post("/v1/files", params=query, content=CONTENT)).json()
    assert (made["bytes"], made["filename"]) == (len(CONTENT), "raw.jsonl")
    assert made["expires_at"] - made["created_at"] == 3600
    assert (await place.ask("GET", f"/v1/files/{made['id']}/content")).content == CONTENT


async def test_pages(place: Site) -> None:
    names = [str(i) for i in range(5)]
    ids = []
    for name in names:
        ids.append((await upload(place, b"", name))["id"])
        await until_soon(lambda: new_file_id()[:17] > ids[-1][:17], "the next millisecond")
    everything = (await place.ask("GET", "/v1/files")).json()
    assert [file["filename"] for file in everything["data"]] == names[::-1]
    assert {k: v for k, v in everything.items() if k != "data"} == {
        "object": "list", "first_id": ids[-1], "last_id": ids[0], "has_more": False,
    }  # fmt: skip
    page = (await place.ask("GET", f"/v1/files?limit=2&after={ids[3]}")).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == ([ids[2], ids[1]], True)
    page = (await place.ask("GET", "/v1/files?limit=2&order=asc&purpose=batch")).json()
    assert [file["id"] for file in page["data"]] == ids[:2]
    none = (await place.ask("GET", "/v1/files?purpose=batch_output")).json()
    assert none == {"object": "list", "first_id": None, "last_id": None, "has_more": False, "data": []}


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=10001", "limit"), ("limit=x", "limit"), ("limit=٣", "limit"), ("order=up", "order"),
     ("purpose=vision", "purpose"), ("after=me", "after"), ("after=file-%00", "after")],
)  # fmt: skip
async def test_queries_that_are_refused(place: Site, query: str, field: str) -> None:
    assert error_of(await place.ask("GET", f"/v1/files?{query}")) == (400, "invalid_value", field)


@pytest.mark.parametrize(
    ("wanted", "code", "first", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=5-5", 206, 5, 6),
        ("bytes=5-", 206, 5, 1900),
        ("bytes=0-", 206, 0, 1900),
        ("bytes=-5", 206, 1895, 1900),
        ("bytes=-99999", 206, 0, 1900),
        ("bytes=1890-99999", 206, 1890, 1900),
        ("BYTES=0-0", 206, 0, 1),
        ("bytes=0-1,5-6", 200, 0, 1900),  # several: everything, as a server may
        ("bytes=9-5", 200, 0, 1900),
        ("bytes=-", 200, 0, 1900),
        ("bytes=x-y", 200, 0, 1900),
        ("lines=0-5", 200, 0, 1900),
        ("bytes=0-" + "9" * 40, 200, 0, 1900),
    ],
)
async def test_ranges(place: Site, wanted: str, code: int, first: int, end: int) -> None:
    content = bytes(range(256)) * 8
    made = await upload(place, content[:1900])
    response = await place.http.get(f"/v1/files/{made['id']}/content", headers={"Range": wanted})
    assert (response.status_code, response.content) == (code, content[first:end])
    assert response.headers.get("content-range") == (f"bytes {first}-{end - 1}/1900" if code == 206 else None)
    again = {"Range": wanted, "If-Range": '"another"'}
    assert len((await place.http.get(f"/v1/files/{made['id']}/content", headers=again)).content) == 1900
    again["If-Range"] = response.headers["etag"]
    assert (await place.http.get(f"/v1/files/{made['id']}/content", headers=again)).status_code == code


@pytest.mark.parametrize(("content", "wanted"), [(b"abc", "bytes=3-"), (b"abc", "bytes=-0"), (b"", "bytes=0-")])
async def test_ranges_that_are_not_there(place: Site, content: bytes, wanted: str) -> None:
    made = await upload(place, content)
    response = await place.http.get(f"/v1/files/{made['id']}/content", headers={"Range": wanted})
    assert error_of(response) == (416, "range_not_satisfiable", "range")
    assert response.headers["content-range"] == f"bytes */{len(content)}"
    assert (await place.ask("GET", f"/v1/files/{made['id']}/content")).content == content


async def test_a_file_is_its_keys_and_not_an_admins(tmp_path: Path) -> None:
    async with site(tmp_path, KEYS) as place:
        mine = await upload(place, key="key-of-a-team")
        path = f"/v1/files/{mine['id']}"
        for key in ("key-of-another", "key-of-an-admin"):
            for method, where in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
                assert error_of(await place.ask(method, where, key)) == (404, "unknown_file", "id")
            assert (await place.ask("GET", "/v1/files", key)).json()["data"] == []
        assert [file["id"] for file in (await place.ask("GET", "/v1/files", "key-of-a-team")).json()["data"]] == [
            mine["id"]
        ]
        assert (await place.ask("DELETE", path, "key-of-a-team")).status_code == 200


# --- what is too much, too slow, or cut off -------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("raw", [True, False])
async def test_a_file_over_the_limit(place: Site, tmp_path: Path, declared: bool, raw: bool) -> None:
    async def parts(body: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(body), 10_000):
            yield body[at : at + 10_000]

    async def send(size: int) -> httpx.Response:
        built = (
            httpx.Request("POST", "http://x/v1/files", params={"purpose": "batch"}, content=b"x" * size)
            if raw
            else httpx.Request("POST", "http://x", data={"purpose": "batch"}, files={"file": b"x" * size})
        )
        body, kind = built.read(), built.headers.get("content-type", "")
        return await place.http.post(
            f"/v1/files?{built.url.query.decode()}",
            content=body if declared else parts(body),
            headers={"content-type": kind},
        )

    for size in (LIMIT + 1, LIMIT + 200_000):
        assert error_of(await send(size)) == (413, "too_large", "file")
    assert stored(tmp_path) == []
    exact = await send(LIMIT)
    assert (exact.status_code, exact.json()["bytes"]) == (200, LIMIT)


@pytest.mark.parametrize("data", [{}, {"purpose": "vision"}, {"purpose": "batch", "color": "red"}])
async def test_what_is_refused_leaves_nothing(place: Site, tmp_path: Path, data: dict[str, str]) -> None:
    response = await place.http.post("/v1/files", data=data, files={"file": CONTENT})
    assert error_of(response) == (400, "invalid_value", "color" if "color" in data else "purpose")
    assert stored(tmp_path) == []
    assert (await place.ask("GET", "/v1/files")).json()["data"] == []


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """A gateway in a hurry, behind a socket."""
    monkeypatch.setattr(receiving, "WINDOW_S", 0.5)
    monkeypatch.setattr(protocol, "HEAD_S", 0.5)
    with serving(tmp_path) as served:
        yield served


def beginning(length: int = 1_000_000, sent: int = 100_000) -> bytes:
    return request("POST", "/v1/files?purpose=batch", b"x" * sent, length=length)


def test_an_upload_that_stalls(gateway: Serving, tmp_path: Path) -> None:
    with gateway.connect() as client:
        client.sendall(beginning())
        said = answer(client)
    assert said.startswith(b"HTTP/1.1 408")
    assert b'"code":"too_slow"' in said
    wait_until(lambda: stored(tmp_path) == [], "nothing is left")


def test_an_upload_that_trickles(gateway: Serving, tmp_path: Path) -> None:
    with gateway.connect() as client:
        client.sendall(beginning(sent=0))
        client.settimeout(0.05)
        said = b""
        for _ in range(100):
            client.sendall(b"x")
            with suppress(TimeoutError):
                said = client.recv(1000)
                break
    assert said.startswith(b"HTTP/1.1 408")
    wait_until(lambda: stored(tmp_path) == [], "nothing is left")


def test_an_upload_that_is_cut_off(gateway: Serving, tmp_path: Path) -> None:
    with gateway.connect() as client:
        client.sendall(beginning(sent=2_000_000, length=3_000_000))
        wait_until(lambda: stored(tmp_path) != [], "it is being written")
    wait_until(lambda: stored(tmp_path) == [], "nothing is left")
    with gateway.connect() as client:
        client.sendall(beginning(length=100_000))
        assert status(client) == 200, "the next is taken"


def test_a_slow_store_is_not_the_clients_slowness(
    gateway: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = LocalFileOpener.write

    def slow(self: LocalFileOpener, part: bytes) -> int:
        time.sleep(0.6)
        return int(written(self, part))

    monkeypatch.setattr(LocalFileOpener, "write", slow)
    with gateway.connect() as client:
        client.sendall(beginning(length=3_000_000, sent=3_000_000))
        assert status(client) == 200


def test_a_download_that_nobody_reads_on_closes_its_file(gateway: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, close = threading.Event(), LocalFileOpener.close

    def watched(self: LocalFileOpener) -> None:
        close(self)
        closed.set()

    with gateway.connect() as client:
        client.sendall(beginning(length=20_000_000, sent=20_000_000))
        assert status(client) == 200
    (made,) = gateway.do(gateway.place.ask("GET", "/v1/files")).json()["data"]
    monkeypatch.setattr(LocalFileOpener, "close", watched)
    with gateway.connect(4096) as client:
        client.sendall(request("GET", f"/v1/files/{made['id']}/content"))
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert not closed.is_set()
    assert closed.wait(30)


# --- a store or broker in trouble ------------------------------------------------------------------------------------------


async def test_a_full_store(place: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: LocalFileOpener, part: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileOpener, "write", full)
        response = await post(place)
        assert error_of(response) == (503, "store_unavailable", None)
        assert "has no room left" in response.json()["error"]["message"]
    assert stored(tmp_path) == []
    await upload(place)


async def test_a_store_that_is_away(place: Site, tmp_path: Path) -> None:
    made = await upload(place)
    away = tmp_path / "away"
    (tmp_path / "store").rename(away)
    (tmp_path / "store").write_text("a file")
    content = f"/v1/files/{made['id']}/content"
    for response in (await post(place), await place.ask("GET", content)):
        assert error_of(response) == (503, "store_unavailable", None)
    assert (await place.ask("GET", f"/v1/files/{made['id']}")).status_code == 200
    (tmp_path / "store").unlink()
    away.rename(tmp_path / "store")
    assert (await place.ask("GET", content)).content == CONTENT


async def test_a_file_whose_bytes_the_store_has_lost(place: Site, tmp_path: Path) -> None:
    made = await upload(place)
    (tmp_path / "store" / "files" / made["id"]).unlink()
    assert error_of(await place.ask("GET", f"/v1/files/{made['id']}/content")) == (404, "unknown_file", "id")
    assert (await place.ask("DELETE", f"/v1/files/{made['id']}")).status_code == 200


def test_a_file_that_the_store_has_cut_off_is_not_sent_as_if_it_were_whole(gateway: Serving, tmp_path: Path) -> None:
    with gateway.connect() as client:
        client.sendall(beginning(length=1_000_000, sent=1_000_000))
        assert status(client) == 200
    (path,) = (tmp_path / "store" / "files").iterdir()
    path.write_bytes(b"x" * 600_000)
    with gateway.connect() as client:
        client.sendall(request("GET", f"/v1/files/{path.name}/content"))
        said = answer(client)
    assert b"content-length: 1000000" in said
    assert len(said) < 1_000_000


async def test_a_store_that_never_answers(place: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is told; once the store goes on, nothing is left of what nobody waits for."""
    goes_on, moved = threading.Event(), LocalFileOpener.write

    def stuck(self: LocalFileOpener, part: bytes) -> int:
        goes_on.wait(30)
        return int(moved(self, part))

    monkeypatch.setattr(LocalFileOpener, "write", stuck)
    monkeypatch.setattr(off_loop, "ANSWER_S", 0.2)
    response = await post(place)
    assert error_of(response) == (503, "store_unavailable", None)
    assert "has not answered in 0.2 s" in response.json()["error"]["message"]
    assert len(stored(tmp_path)) == 1
    goes_on.set()
    await until_soon(lambda: stored(tmp_path) == [], "what was half written is gone")
    await upload(place)


async def test_a_broker_that_is_away_at_the_end_of_an_upload(
    place: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise BrokerUnavailable("the broker does not answer")

    monkeypatch.setattr(FileList, "add", away)
    assert error_of(await post(place)) == (503, "broker_unavailable", None)
    assert stored(tmp_path) == []


# --- what goes when its time has come ------------------------------------------------------------------------------------------


@pytest.fixture
def files(place: Site) -> Files:
    found: Files = place.app.state.files
    return found


async def add(files: Files, at: float, expires_at: float) -> str:
    record = FileRecord(
        id=derived_file_id(at, "x"), owner="anonymous", bytes=1, created_at=int(at), expires_at=int(expires_at),
        filename="x", purpose="batch",
    )  # fmt: skip
    with files.store.writing(record.id) as file:
        file.write(b"x")
    await files.list.add(record)
    return record.id


async def test_expired_files_go_by_themselves(files: Files, tmp_path: Path) -> None:
    old, held = await add(files, 1, 2), await add(files, 2, 3)
    young = await add(files, 3, time.time() + 1000)
    await files.list.hold(held, "batch_1")
    task = asyncio.create_task(expiring(files, every_s=0.01))
    await until_soon(lambda: old not in stored(tmp_path), "the expired one is gone")
    assert stored(tmp_path) == sorted([held, young])
    await files.list.release(held, "batch_1")
    await until_soon(lambda: stored(tmp_path) == [young], "nobody reads the other any more")
    task.cancel()


async def test_the_bytes_of_a_deleted_file_stay_while_an_open_batch_reads_them(
    place: Site, files: Files, tmp_path: Path
) -> None:
    made = await upload(place)
    await files.list.hold(made["id"], "batch_1")
    assert (await place.ask("DELETE", f"/v1/files/{made['id']}")).json()["deleted"]
    assert (await place.ask("GET", f"/v1/files/{made['id']}/content")).status_code == 404
    assert await files.prune() == []
    assert stored(tmp_path) == [made["id"]]
    await files.list.release(made["id"], "batch_1")
    assert await files.expire() == [made["id"]]
    assert (stored(tmp_path), await files.list.going()) == ([], [])


async def test_trouble_does_not_end_the_expiring(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await add(files, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(off_loop, "ANSWER_S", 0.0)
        task = asyncio.create_task(expiring(files, every_s=0.01))
        await until_soon(lambda: files.list.going(), "its record is gone, its bytes could not be")
    await until_soon(lambda: stored(tmp_path) == [], "the store answers again")
    assert not task.done()
    task.cancel()


async def test_prune_says_what_has_gone(
    place: Site, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired, kept = await add(files, 1, 2), await add(files, 2, time.time() + 1000)
    orphan = new_file_id()
    with files.store.writing(orphan) as file:
        file.write(b"its gateway died before it was in the list")
    pruned = await place.ask("POST", "/v1/artifacts/prune")
    assert pruned.json() == {"pruned": [], "files": [expired]}
    assert stored(tmp_path) == sorted([kept, orphan]), "an upload may be about to end"
    monkeypatch.setattr(FileStore, "age_s", lambda self, name: 100_000.0)
    assert (await place.ask("POST", "/v1/artifacts/prune")).json()["files"] == [orphan]
    assert stored(tmp_path) == [kept]


async def test_parts_that_were_written_once_their_batch_was_over(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a gateway that stood still meanwhile."""
    over, runs = new_batch_id(), new_batch_id()
    lease_ends = time.time() * 1000 + 15_000  # nobody else takes it meanwhile
    await files.list._redis.zadd("{batches}:batches-open", {runs: lease_ends})
    for batch in (over, runs):
        with files.store.writing(f"{batch}/output-old-7.jsonl") as file:
            file.write(b"a row")
    assert (await files.expire(), files.store.folders()) == ([], sorted([over, runs])), "they may be new"
    monkeypatch.setattr(FileStore, "age_s", lambda self, name: 100_000.0)
    assert (await files.expire(), files.store.folders()) == ([over], [runs])


async def test_a_file_is_deleted_while_the_store_is_away(
    files: Files, place: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: FileStore, name: str) -> None:
        raise StoreUnavailable("the artifact store does not answer")

    made = await upload(place)
    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "delete", away)
        assert (await place.ask("DELETE", f"/v1/files/{made['id']}")).status_code == 200
    assert (await place.ask("GET", f"/v1/files/{made['id']}")).status_code == 404
    assert stored(tmp_path) == [made["id"]]
    await files.expire()
    assert stored(tmp_path) == []
