"""Where a version comes from: host memory, disk, store; a cache is never a reason to fail, and never serves a wrong byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmplex_broker.errors import PackageRejected, Unavailable
from fmplex_broker.packages.archive import SUFFIX, pack
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import Package, bare
from fmplex_broker.specs.fleet import ResidencySpec
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_worker.residency.cache import DiskCache
from fmplex_worker.residency.fetching import OVERHEAD, Fetcher


def version(n: int) -> Package:
    """Packages that differ in their backbone's name alone."""
    return bare(VfmSpec(name="a", backbone=f"b{n:03}", head=Embedding()))


SIZE = len(pack(version(0)))


class FarStore:
    """A store that is not of this machine, and counts who asks."""

    local = False

    def __init__(self, *packages: Package) -> None:
        self.blobs = {p.digest: pack(p) for p in packages}
        self.asked: list[str] = []
        self.away = False

    def get(self, digest: str) -> bytes:
        self.asked.append(digest)
        if self.away:
            raise Unavailable("the store is away")
        if digest not in self.blobs:
            raise PackageRejected("not in the store")
        return self.blobs[digest]


def fetcher(store: object, folder: Path, host: int = 0, disk: int = 10 * SIZE) -> Fetcher:
    spec = ResidencySpec(cache=folder, host_bytes=host, disk_bytes=disk)
    return Fetcher(store, spec, lambda package: package)  # type: ignore[arg-type]


def used(folder: Path, digest: str, at: float) -> None:
    os.utime(folder / f"{digest}{SUFFIX}", (at, at))


def cached(folder: Path) -> set[str]:
    return {path.name.removesuffix(SUFFIX) for path in folder.iterdir()}


# --- the way of a version ---------------------------------------------------------------------------------------------


def test_store_then_host_memory_then_disk(tmp_path: Path) -> None:
    v = version(1)
    store = FarStore(v)
    first = fetcher(store, tmp_path, host=OVERHEAD)
    assert first.kept(v.digest) is None
    assert first.fetch(v.digest) == (v, "store")
    assert first.kept(v.digest) == v
    again = fetcher(store, tmp_path)  # another process of this machine
    package, source = again.fetch(v.digest)
    assert (package, source, store.asked) == (v, "disk", [v.digest])
    assert again.disk_bytes == SIZE


def test_a_local_store_is_not_copied(tmp_path: Path) -> None:
    v, store = version(1), ArtifactStore(str(tmp_path / "store"))
    store.put(v)
    f = fetcher(store, tmp_path / "cache")
    assert f.fetch(v.digest) == (v, "store")
    assert not (tmp_path / "cache").exists()
    assert f.disk_bytes == 0


def test_no_disk_budget_no_disk(tmp_path: Path) -> None:
    v = version(1)
    fetcher(FarStore(v), tmp_path / "cache", disk=0).fetch(v.digest)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("wrong", [b"", b"junk", pack(version(7)), pack(version(1))[:700]])
def test_a_tampered_or_torn_file_is_replaced_from_the_store(tmp_path: Path, wrong: bytes) -> None:
    v = version(1)
    fetcher(FarStore(v), tmp_path).fetch(v.digest)
    file = tmp_path / f"{v.digest}{SUFFIX}"
    file.write_bytes(wrong)
    store = FarStore(v)
    assert fetcher(store, tmp_path).fetch(v.digest) == (v, "store")
    assert file.read_bytes() == pack(v)
    assert store.asked == [v.digest]


def test_a_tampered_artifact_is_never_served(tmp_path: Path) -> None:
    v, store = version(1), FarStore()
    store.blobs[v.digest] = pack(version(7))
    with pytest.raises(PackageRejected, match="another one"):
        fetcher(store, tmp_path).fetch(v.digest)
    assert cached(tmp_path) == set()


def test_what_is_cached_needs_no_store(tmp_path: Path) -> None:
    v, w, store = version(1), version(2), FarStore(version(1))
    fetcher(store, tmp_path).fetch(v.digest)
    store.away = True
    assert fetcher(store, tmp_path).fetch(v.digest) == (v, "disk")
    with pytest.raises(Unavailable):
        fetcher(store, tmp_path).fetch(w.digest)


@pytest.mark.parametrize("obstacle", ["a file in its place", "a folder in the file's place"])
def test_a_disk_that_cannot_be_written_is_only_no_cache(tmp_path: Path, obstacle: str) -> None:
    v, cache = version(1), tmp_path / "cache"
    if obstacle == "a file in its place":
        cache.write_bytes(b"")
    else:
        (cache / f"{v.digest}{SUFFIX}" / "x").mkdir(parents=True)
    for _ in range(2):
        assert fetcher(FarStore(v), cache).fetch(v.digest) == (v, "store")
    assert not [*tmp_path.rglob(".*")]  # no scratch file is left


def test_a_full_disk_is_only_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    v = version(1)
    assert fetcher(FarStore(v), tmp_path).fetch(v.digest) == (v, "store")
    assert cached(tmp_path) == set()


# --- what stays on disk -----------------------------------------------------------------------------------------------


def test_the_least_recently_used_file_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 3 * SIZE)
    for i, digest in enumerate("abc"):
        cache.put(digest, bytes(SIZE))
        used(tmp_path, digest, 1000.0 + i)
    assert cache.get("a") is not None  # now the last used
    cache.put("d", bytes(SIZE))
    assert cached(tmp_path) == {"a", "c", "d"}
    assert cache.nbytes == 3 * SIZE


def test_what_is_larger_than_the_budget_pushes_nothing_out(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 2 * SIZE)
    cache.put("a", bytes(SIZE))
    cache.put("huge", bytes(3 * SIZE))
    assert cached(tmp_path) == {"a"}


def test_two_workers_share_one_folder_and_one_budget(tmp_path: Path) -> None:
    one, two = DiskCache(tmp_path, 2 * SIZE), DiskCache(tmp_path, 2 * SIZE)
    one.put("a", b"a" * SIZE)
    used(tmp_path, "a", 1000.0)
    assert two.get("a") == b"a" * SIZE
    used(tmp_path, "a", 1000.0)
    two.put("b", bytes(SIZE))
    one.put("c", bytes(SIZE))
    assert cached(tmp_path) == {"b", "c"}
    assert two.get("a") is None  # gone under it: a miss, no error
    two.drop("a")
    assert DiskCache(tmp_path, 2 * SIZE).nbytes == 2 * SIZE  # as a third finds it


def test_host_memory_keeps_what_was_used_last_within_its_bytes(tmp_path: Path) -> None:
    packages = [Package(version(i).spec, f"{i}", {"head.safetensors": bytes(100)}) for i in range(4)]
    f = fetcher(FarStore(), tmp_path, host=2 * (100 + OVERHEAD) + 50)
    for p in packages[:2]:
        f._keep(p)
    assert f.kept("0") == packages[0]
    f._keep(packages[2])
    f._keep(packages[2])  # by two threads at once
    assert f.host_bytes == 2 * (100 + OVERHEAD)
    assert [f.kept(d) for d in "012"] == [packages[0], None, packages[2]]
    assert f.dropped_bytes == 100
