"""An engine and a fetcher whose every step the test decides."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fmplex_broker.packages.package import HEAD, Package
from fmplex_broker.specs.heads import Embedding
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_worker.residency.fetching import OVERHEAD
from fmplex_worker.residency.residents import Residents

MB = 1 << 20


class Inline(Executor):
    """Runs at once, where it is called from."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as e:
            future.set_exception(e)
        return future


@dataclass
class FakeEngine:
    """`broken`: versions at which it crashes."""

    broken: dict[str, Exception] = field(default_factory=dict)
    loaded: dict[str, int] = field(default_factory=dict)
    loads: Counter[str] = field(default_factory=Counter)
    unloads: list[str] = field(default_factory=list)
    on_unload: Callable[[str], None] = lambda digest: None

    def load(self, fitted: Package) -> None:
        self.loads[fitted.digest] += 1
        if fitted.digest in self.broken:
            raise self.broken[fitted.digest]
        self.loaded[fitted.digest] = fitted.nbytes

    def unload(self, digest: str) -> None:
        self.on_unload(digest)
        del self.loaded[digest]
        self.unloads.append(digest)


@dataclass
class FakeFetcher:
    """Every version there is has `size` bytes, or what `sizes` says. While `gate` is closed, nothing arrives."""

    size: int = MB
    sizes: dict[str, int] = field(default_factory=dict)
    failing: dict[str, Exception] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    gate: threading.Event = field(default_factory=threading.Event)
    host_bytes: int = 0
    disk_bytes: int = 0
    dropped_bytes: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def kept(self, digest: str) -> None:
        """It keeps nothing."""

    def fetch(self, digest: str) -> tuple[Package, str]:
        self.asked[digest] += 1
        assert self.gate.wait(10)
        if digest in self.failing:
            raise self.failing[digest]
        return package(digest, self.sizes.get(digest, self.size)), "store"


def package(digest: str, size: int) -> Package:
    return Package(VfmSpec(name="a", backbone="b", head=Embedding()), digest, {HEAD: bytes(size)})


def residents(versions: float = 2, **fetching: Any) -> tuple[Residents, FakeEngine, FakeFetcher]:
    """With room for so many versions of 1 MB."""
    engine, fetcher = FakeEngine(), FakeFetcher(**fetching)
    budget = int(versions * (MB + OVERHEAD))
    return Residents(engine, fetcher, budget, ThreadPoolExecutor(4), Inline()), engine, fetcher  # type: ignore[arg-type]
