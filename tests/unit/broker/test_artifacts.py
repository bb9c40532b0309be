"""The artifact store: whole or not at all, only what has the digest, and nothing that is still needed goes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.local import LocalFileOpener

from fmplex_broker.errors import InvalidInput, PackageRejected, Unavailable
from fmplex_broker.packages.archive import SUFFIX, pack
from fmplex_broker.packages.artifacts import ArtifactStore, open_artifact
from tests.unit.broker import made

OPENERS: dict[str, Callable[[Path], str]] = {
    "folder": lambda folder: str(folder / "not" / "there yet"),
    "file url": lambda folder: f"file://{folder}/artifacts",
    "memory": lambda _: f"memory://{uuid4().hex}/artifacts",
}


@pytest.fixture(params=OPENERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtifactStore]:
    yield ArtifactStore(OPENERS[request.param](tmp_path))
    fsspec.filesystem("memory").store.clear()


def stored(store: ArtifactStore) -> list[str]:
    """Names of all files in the store."""
    fs, folder = store._storage.fs, store._storage.folder
    found = fs.find(folder) if fs.exists(folder) else []
    return sorted(path.rpartition("/")[2] for path in found)


def put_bytes(store: ArtifactStore, name: str, blob: bytes) -> None:
    store._storage.fs.pipe_file(store._storage.path(name), blob)


def other(value: float) -> Any:
    return made.make_package(made.spec("embedding"), made.adapter(value))


def test_there_and_back(store: ArtifactStore) -> None:
    for package in (made.package(), made.package("embedding"), other(3.0)):
        store.put(package)
        assert open_artifact(store.get(package.digest), package.digest) == package
    assert len(stored(store)) == 3


def test_again_changes_nothing(store: ArtifactStore) -> None:
    package = made.package()
    store.put(package)
    store.put(package)
    assert stored(store) == [package.digest + SUFFIX]
    assert store.get(package.digest) == pack(package)


def test_a_missing_version_says_what_to_do(store: ArtifactStore) -> None:
    with pytest.raises(PackageRejected, match=r"0123456789abcdef is not in the artifact store .*; deploy it again"):
        store.get("0123456789abcdef")


def test_only_what_has_the_digest_is_opened(store: ArtifactStore) -> None:
    package, evil = made.package(), other(2.0)
    store.put(package)
    put_bytes(store, package.digest + SUFFIX, pack(evil))
    with pytest.raises(PackageRejected, match="is another one; deploy it again"):
        open_artifact(store.get(package.digest), package.digest)
    put_bytes(store, package.digest + SUFFIX, b"half of i")
    with pytest.raises(PackageRejected):
        open_artifact(store.get(package.digest), package.digest)
    store.put(package)  # deployed again: it is whole again
    assert open_artifact(store.get(package.digest), package.digest) == package


def test_a_put_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, package = ArtifactStore(str(tmp_path)), made.package()

    def full(self: LocalFileOpener, part: bytes) -> None:
        self.f.write(part[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LocalFileOpener, "write", full)
    with pytest.raises(Unavailable, match=r"has no room left.*No space left"):
        store.put(package)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PackageRejected):
        store.get(package.digest)


def test_a_put_that_is_killed_before_its_last_step_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file gets its name last, by a rename."""
    store, package = ArtifactStore(str(tmp_path)), made.package()
    seen: list[list[str]] = []
    moved = type(store._storage.fs).mv

    def watched(self: Any, source: str, target: str, **more: Any) -> None:
        seen.append([name for name in stored(store) if name.endswith(SUFFIX)])
        moved(self, source, target, **more)

    monkeypatch.setattr(type(store._storage.fs), "mv", watched)
    store.put(package)
    assert (seen, stored(store)) == ([[]], [package.digest + SUFFIX])


# --- pruning ---------------------------------------------------------------------------------------------------------


def test_what_is_referenced_or_young_stays(store: ArtifactStore) -> None:
    kept, old = other(1.0), other(2.0)
    for package in (kept, old):
        store.put(package)
    assert store.prune({kept.digest}, older_than_s=3600) == []
    assert store.prune({kept.digest}, older_than_s=-1) == [old.digest]
    assert stored(store) == [kept.digest + SUFFIX]
    with pytest.raises(PackageRejected, match="deploy it again"):
        store.get(old.digest)


def test_age_is_of_the_last_put(tmp_path: Path) -> None:
    """A version that is offered again must outlive the prune that runs meanwhile."""
    store, old, again = ArtifactStore(str(tmp_path)), other(1.0), other(2.0)
    for package in (old, again):
        store.put(package)
        os.utime(tmp_path / f"{package.digest}{SUFFIX}", (time.time() - 100, time.time() - 100))
    store.put(again)
    assert store.prune(set(), older_than_s=50) == [old.digest]
    assert stored(store) == [again.digest + SUFFIX]


def test_what_a_killed_put_left_goes_after_a_day(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(made.package())
    put_bytes(store, ".0123", b"half of i")
    store.prune(set(), older_than_s=-1)
    assert stored(store) == [".0123"], "somebody may be writing it"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 86_400)
    store.prune(set(), older_than_s=1e9)
    assert stored(store) == []


def test_other_files_are_not_ours_to_delete(store: ArtifactStore) -> None:
    store.put(made.package())
    for name in ("notes.txt", f"x{SUFFIX}.bak"):
        put_bytes(store, name, b"mine")
    store.prune(set(), older_than_s=-1)
    assert stored(store) == ["notes.txt", f"x{SUFFIX}.bak"]


def test_an_empty_store(store: ArtifactStore) -> None:
    assert store.prune(set(), older_than_s=0) == []


# --- stores that do not answer ---------------------------------------------------------------------------------------


class _Odd(Exception):
    """What a store's own library raises."""


@pytest.mark.parametrize("error", [OSError("down"), PermissionError("no"), TimeoutError(), _Odd("endpoint")])
def test_a_store_that_does_not_answer_is_unavailable(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(f"memory://{uuid4().hex}")

    def fails(*_: Any, **__: Any) -> None:
        raise error

    for name in ("_open", "cat_file", "ls"):
        monkeypatch.setattr(type(store._storage.fs), name, fails)
    for call in (lambda: store.put(made.package()), lambda: store.get("x"), lambda: store.prune(set(), 0)):
        with pytest.raises(Unavailable, match=r"artifact store memory://.* does not answer"):
            call()


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ArtifactStore(str(tmp_path / "file" / "artifacts"))
    with pytest.raises(Unavailable):
        store.put(made.package())


def test_a_url_that_nobody_knows() -> None:
    with pytest.raises(InvalidInput, match="gopher") as caught:
        ArtifactStore("gopher://x")
    assert caught.value.field == "artifacts"


def test_which_stores_are_folders_of_this_machine(tmp_path: Path) -> None:
    assert ArtifactStore(str(tmp_path)).local
    assert ArtifactStore(f"file://{tmp_path}").local
    assert not ArtifactStore("memory://x").local
