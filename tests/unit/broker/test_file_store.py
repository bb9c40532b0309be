"""The bytes of files: whole or not at all, in folders and elsewhere, and every failure of the store is one error."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.local import LocalFileOpener

from fmplex_broker.errors import InvalidInput, StoreUnavailable, UnknownFile
from fmplex_broker.packages.files import FileStore
from fmplex_broker.specs.files import FileRecord, derived_file_id, is_file_id, new_file_id


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FileStore]:
    yield FileStore(str(tmp_path / "store") if request.param == "folder" else f"memory://{uuid4().hex}")
    fsspec.filesystem("memory").store.clear()


def put(store: FileStore, name: str, content: bytes) -> None:
    with store.writing(name) as file:
        file.write(content)


def test_there_and_back(store: FileStore) -> None:
    put(store, "file-1", b"one\ntwo\n")
    put(store, "file-1", b"one\ntwo\nthree")
    with store.open("file-1") as file:
        assert list(file) == [b"one\n", b"two\n", b"three"]
        assert (file.seek(4), file.read(3), file.tell()) == (4, b"two", 7)
        assert (file.seek(-2, os.SEEK_END), file.read(), file.read()) == (11, b"ee", b"")
    put(store, "empty", b"")
    assert store.open("empty").read() == b""


def test_folders(store: FileStore) -> None:
    assert store.names("batch_1") == store.names() == []
    for name in ("batch_1/errors-2-1.jsonl", "batch_1/output-1-10.jsonl", "batch_12/output-1-1.jsonl", "file-1"):
        put(store, name, name.encode())
    assert store.names("batch_1") == ["batch_1/errors-2-1.jsonl", "batch_1/output-1-10.jsonl"]
    assert store.names() == ["file-1"]
    assert store.open(store.names("batch_1")[0]).read() == b"batch_1/errors-2-1.jsonl"
    store.delete("batch_1/output-1-10.jsonl")
    assert store.names("batch_1") == ["batch_1/errors-2-1.jsonl"]
    for _ in range(2):
        store.delete("batch_1")
        assert store.names("batch_1") == []
    assert store.names("batch_12") == ["batch_12/output-1-1.jsonl"]


def test_what_is_not_there(store: FileStore) -> None:
    for call in (store.open, store.age_s):
        with pytest.raises(UnknownFile, match="No such File object: file-1"):
            call("file-1")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../b", "a//b", ".x", "a/.b", "a b", "ä", "x\n", "a/"])
def test_names_that_are_none(store: FileStore, name: str) -> None:
    for call in (store.open, store.delete, lambda name: put(store, name, b"")):
        with pytest.raises(InvalidInput):
            call(name)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("mine"), OSError(5, "mine"), Stop(), KeyboardInterrupt()])
def test_what_breaks_off_leaves_what_was_there(store: FileStore, error: BaseException) -> None:
    """And the error stays what it was: the store is not to blame."""
    put(store, "file-1", b"old")
    with pytest.raises(type(error)) as caught, store.writing("file-1") as file:  # noqa: PT012
        file.write(b"new")
        raise error
    assert caught.value is error
    assert (store.open("file-1").read(), store._storage._found("")) == (b"old", ["file-1"])


def test_nobody_sees_half_a_file(store: FileStore) -> None:
    with store.writing("file-1") as file:
        file.write(b"half")
        file.flush()
        assert store.names() == []
        with pytest.raises(UnknownFile):
            store.open("file-1")
    assert store.names() == ["file-1"]


def test_each_step_may_run_on_another_thread(store: FileStore) -> None:
    def elsewhere(call: Any, *args: Any) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(call, *args).result()

    stack = ExitStack()
    file = elsewhere(stack.enter_context, store.writing("file-1"))
    for part in (b"a", b"b"):
        elsewhere(file.write, part)
    elsewhere(stack.close)
    assert store.open("file-1").read() == b"ab"


def test_what_killed_writers_left_goes_after_a_day(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path))
    put(store, "file-1", b"x")
    old, young = tmp_path / "files" / ".old", tmp_path / "files" / ".young"
    for scratch in (old, young):
        scratch.write_bytes(b"half")
    for path in (old, tmp_path / "files" / "file-1"):
        os.utime(path, (time.time() - 90_000, time.time() - 90_000))
    store.sweep()
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == [".young", "file-1"]
    assert store.age_s("file-1") > 89_000


# --- a store that is full, away or odd ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store, written = FileStore(str(tmp_path)), LocalFileOpener.write

    def full(self: LocalFileOpener, part: bytes) -> int:
        if self.tell() + len(part) > 1000:
            raise OSError(code, os.strerror(code))
        return int(written(self, part))

    monkeypatch.setattr(LocalFileOpener, "write", full)
    put(store, "file-1", b"x" * 1000)
    with (  # noqa: PT012
        pytest.raises(StoreUnavailable, match=r"the artifact store .* has no room left"),
        store.writing("file-2") as file,
    ):
        for _ in range(3):
            file.write(b"x" * 500)
    assert store._storage._found("") == ["file-1"]


class _Odd(Exception):
    """What a store's own library raises."""


@pytest.mark.parametrize("error", [OSError("down"), PermissionError("no"), TimeoutError(), _Odd("endpoint")])
def test_a_store_that_is_away(store: FileStore, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "file-1", b"x" * 1000)
    opened, entered = store.open("file-1"), ExitStack()
    file = entered.enter_context(store.writing("file-2"))

    def fails(*_: Any, **__: Any) -> None:
        raise error

    for name in ("_open", "ls", "rm", "mv", "modified"):
        monkeypatch.setattr(type(store._storage.fs), name, fails)
    for call in (
        lambda: put(store, "file-3", b""),
        lambda: store.open("file-1"),
        lambda: store.names(),
        lambda: store.delete("file-1"),
        lambda: store.age_s("file-1"),
        lambda: store.sweep(),
    ):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            call()
    monkeypatch.setattr(opened.raw._file, "read", fails, raising=False)  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable):
        opened.read()
    file.write(b"x")
    with pytest.raises(StoreUnavailable):
        entered.close()


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FileStore(str(tmp_path / "file" / "store"))
    with pytest.raises(StoreUnavailable):
        put(store, "file-1", b"")
    with pytest.raises(InvalidInput, match="gopher"):
        FileStore("gopher://x")


# --- records ------------------------------------------------------------------------------------------------------------


def test_ids_sort_by_time_and_the_same_gives_the_same() -> None:
    first, later = derived_file_id(1.0, "b/output"), derived_file_id(1.001, "a/output")
    assert first < later < new_file_id()
    assert derived_file_id(1.0, "b/output") == first != derived_file_id(1.0, "b/errors")
    assert is_file_id(first)
    assert is_file_id(new_file_id())
    for text in ("", "file-", first.upper(), f"{first}\n", f" {first}", first.replace("file-", "batch_")):
        assert not is_file_id(text)


def test_a_record_in_openais_shape() -> None:
    record = FileRecord(
        id=new_file_id(), owner="a", bytes=3, created_at=1, expires_at=2, filename="ü.jsonl", purpose="batch"
    )
    assert FileRecord.model_validate_json(record.model_dump_json()) == record
    assert record.shown() == {
        "object": "file", "id": record.id, "bytes": 3, "created_at": 1, "expires_at": 2, "filename": "ü.jsonl",
        "purpose": "batch", "status": "processed",
    }  # fmt: skip
