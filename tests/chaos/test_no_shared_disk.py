"""Gateway and worker share no disk: the gateway writes artifacts to its store, the worker fetches them by another URL."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fmplex import Client, PackageRejected, Unavailable
from fmplex_broker.packages.package import Package, read_package
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.embedded import EmbeddedServer
from tests.chaos.sites import FileServer
from tests.support.fleets import gateway, worker, write_minilm_fleet
from tests.support.metrics import metric
from tests.support.outputs import difference
from tests.support.packages import write_package
from tests.support.waiting import wait_until

CLASSES = {"kind": "classification", "labels": ["a", "b"]}
TEXT = "a text"
NAMES = tuple(f"far-{i}" for i in range(5))
ROOM = 2  # versions on the device; none in host memory


@dataclass
class Far:
    """A fleet whose worker has its artifacts from afar."""

    client: Client
    url: str
    store: Path
    cache: Path
    files: FileServer
    packages: dict[str, Package]
    wanted: dict[str, Any]

    def answers(self, name: str) -> None:
        result = self.client.infer(name, TEXT)
        assert artifact_of(result.version) == self.packages[name].digest
        assert difference(result.output, self.wanted[name]) <= 1e-5

    def loads(self, source: str) -> float:
        return metric(self.url, "fmplex_residency_loads_total", source=source)

    def forget_cache(self) -> None:
        for file in self.cache.glob("*"):
            file.unlink()

    def crowd_out(self, *names: str) -> None:
        """None of them is resident any more."""
        others = [name for name in NAMES if name not in names][:ROOM]
        for name in others:
            self.answers(name)

    def artifact(self, name: str) -> Path:
        return self.store / f"{self.packages[name].digest}.fmplex"


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    place = tmp_path_factory.mktemp("far")
    packages = {n: read_package(write_package(place / n, CLASSES, rank=4, seed=i)) for i, n in enumerate(NAMES)}
    room = ROOM * (packages[NAMES[0]].nbytes + 16_384)
    store, cache = place / "store", place / "cache"
    store.mkdir()
    with FileServer(store) as files, EmbeddedServer(place / "broker") as server:
        residency = {"device_bytes": room, "host_bytes": 0, "cache": str(cache)}
        here = write_minilm_fleet(place / "here", artifacts=str(store))
        there = write_minilm_fleet(
            place / "there", worker={"lease_ms": 800, "residency": residency}, artifacts=files.url
        )
        with (
            worker(there, server.url, place / "worker.log"),
            gateway(here, server.url, place / "gateway.log") as (url, _),
            Client(url, retries=0) as client,
        ):
            wanted = {}
            for name, package in packages.items():
                client.vfms.deploy(package)
                wanted[name] = client.infer(name, TEXT).output
            assert all(difference(wanted[NAMES[0]], wanted[name]) > 1e-4 for name in NAMES[1:])
            yield Far(client, url, store, cache, files, packages, wanted)


@contextmanager
def away(far: Far) -> Iterator[None]:
    far.files.stop()
    try:
        yield
    finally:
        far.files.start()


def test_a_worker_keeps_what_it_fetched_on_its_own_disk(far: Far) -> None:
    assert {file.name for file in far.cache.iterdir()} == {f"{p.digest}.fmplex" for p in far.packages.values()}
    before = far.loads("disk")
    with away(far):
        for name in NAMES * 2:
            far.answers(name)
    wait_until(lambda: far.loads("disk") >= before + 2 * (len(NAMES) - ROOM), "loads from the disk are counted")
    assert metric(far.url, "fmplex_residency_bytes", tier="disk") >= sum(p.nbytes for p in far.packages.values())


def test_while_the_store_is_away_residents_serve_and_others_say_why(far: Far) -> None:
    first, *_ = NAMES
    far.crowd_out(first)
    far.forget_cache()
    resident = [name for name in NAMES if name != first][:ROOM]
    with away(far):
        with pytest.raises(Unavailable, match=r"artifact store .* does not answer") as caught:
            far.client.infer(first, TEXT)
        assert (caught.value.code, caught.value.status) == ("store_unavailable", 503)
        for name in resident:
            far.answers(name)
        offered = read_package(write_package(far.store.parent / "away" / first, CLASSES, seed=77))
        offering = threading.Thread(target=far.client.vfms.update, args=(first, offered))
        offering.start()
        wait_until(
            lambda: artifact_of(far.client.vfms.show(first).candidate or "") == offered.digest,
            "the version is on offer",
        )
        shown = far.client.vfms.show(first)
        assert (shown.status, artifact_of(shown.version or ""), shown.error) == (
            "serving",
            far.packages[first].digest,
            None,
        )
    offering.join()  # nobody could judge it while the store was away; now it is judged
    assert artifact_of(far.client.vfms.show(first).version or "") == offered.digest
    assert artifact_of(far.client.vfms.roll_back(first).version or "") == far.packages[first].digest
    far.answers(first)


def _serves(far: Far, name: str, until_then: type[Exception]) -> bool:
    """Whether it answers; `until_then` is the one error that it may give instead."""
    try:
        far.answers(name)
    except until_then:
        return False
    return True


Tampering = Callable[[bytes, bytes], bytes]  # (the artifact, that of another version) -> what is stored instead


def _flip(mine: bytes, _: bytes) -> bytes:
    middle = len(mine) // 2
    return mine[:middle] + bytes([mine[middle] ^ 1]) + mine[middle + 1 :]


TAMPERED: dict[str, tuple[Tampering, str]] = {
    "another version": (lambda _, other: other, "is another one; deploy it again"),
    "one bit": (_flip, "is another one; deploy it again"),
    "half of it": (lambda mine, _: mine[: len(mine) // 2], "archive"),
    "nothing": (lambda *_: b"", "archive"),
    "a page of HTML": (lambda *_: b"<html>404</html>" * 100, "archive"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_a_tampered_artifact_is_refused_and_others_go_on(far: Far, what: str) -> None:
    first, second, *_ = NAMES
    change, says = TAMPERED[what]
    far.crowd_out(first)
    far.forget_cache()
    genuine = far.artifact(first).read_bytes()
    far.artifact(first).write_bytes(change(genuine, far.artifact(second).read_bytes()))
    try:
        with pytest.raises(PackageRejected, match=says):
            far.client.infer(first, TEXT)
        for name in NAMES[1:]:
            far.answers(name)
        assert not (far.cache / far.artifact(first).name).exists(), "it is not kept"
    finally:
        far.artifact(first).write_bytes(genuine)
    wait_until(lambda: _serves(far, first, PackageRejected), "it serves again once it is mended", 20)


def test_a_torn_file_in_the_cache_is_fetched_again(far: Far) -> None:
    first, *_ = NAMES
    far.answers(first)
    far.crowd_out(first)
    cached = far.cache / far.artifact(first).name
    cached.write_bytes(cached.read_bytes()[:5000])
    far.answers(first)
    assert cached.read_bytes() == far.artifact(first).read_bytes()


def test_a_version_that_the_store_has_lost_is_named(far: Far) -> None:
    first, *_ = NAMES
    far.crowd_out(first)
    far.forget_cache()
    genuine = far.artifact(first).read_bytes()
    far.artifact(first).unlink()
    with pytest.raises(PackageRejected, match=f"artifact {far.packages[first].digest} is not in the artifact store"):
        far.client.infer(first, TEXT)
    far.artifact(first).write_bytes(genuine)
    wait_until(lambda: _serves(far, first, PackageRejected), "it serves again once it is there", 20)


@pytest.mark.parametrize("code", [500, 403])
def test_a_store_that_answers_with_an_error_is_unavailable(far: Far, code: int) -> None:
    """A store that fails is not a version that is wrong: callers may try again."""

    class Fails(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(code)

        def log_message(self, *_: object) -> None:
            pass

    first, *_ = NAMES
    far.crowd_out(first)
    far.forget_cache()
    with away(far):
        port = int(far.files.url.rstrip("/").rpartition(":")[2])
        failing = http.server.ThreadingHTTPServer(("127.0.0.1", port), Fails)
        thread = threading.Thread(target=failing.serve_forever)
        thread.start()
        try:
            with pytest.raises(Unavailable, match="artifact store") as caught:
                far.client.infer(first, TEXT)
            assert caught.value.status == 503
        finally:
            failing.shutdown()
            thread.join()
            failing.server_close()
    wait_until(lambda: _serves(far, first, Unavailable), "it serves again", 20)
