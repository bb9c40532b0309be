"""One fleet for all integration tests (real processes, the real MiniLM), and on it one vFM of every kind of head."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from fmplex import AsyncClient, Client
from fmplex.local import LocalFleet
from fmplex_broker.specs.versions import artifact_of
from tests.integration.shell import Shell
from tests.integration.traffic import Traffic
from tests.support.broker import Broker
from tests.support.fleets import write_minilm_fleet
from tests.support.packages import LINEARS, QUERY_VALUE, write_package

MAX_PACKAGE = 16_777_216  # bytes that the gateway takes
NEIGHBOURS = ("embed-lora", "sentiment", "entities", "ranker")
LABELS = ("good", "bad", "so so")
TEXTS = (
    "the delivery came two days late and nobody answered",
    "what a lovely quiet place",
    "Anna flew from Paris to Berlin on Monday with the new contract",
    "ok",
    "please send the invoice again, the first one had the wrong address and the wrong sum, and it was for somebody else",
)


def pairs(texts: tuple[str, ...] = TEXTS) -> list[dict[str, str]]:
    return [{"text": a, "text_pair": b} for a, b in zip(texts, texts[1:] + texts[:1], strict=True)]


@dataclass(frozen=True)
class Task:
    """A vFM of the fleet, texts for it, and what an output has."""

    head: dict[str, Any]
    inputs: list[Any]
    keys: set[str]
    package: dict[str, Any]


def _task(
    kind: str, keys: set[str], inputs: list[Any] | None = None, *, package: dict[str, Any] | None = None, **head: Any
) -> Task:
    return Task({"kind": kind, **head}, inputs or list(TEXTS), keys, package or {})


ATTENTION = (*QUERY_VALUE, "attention.output.dense")
# Every kind of head; LoRAs of several ranks and targets, and none.
TASKS = {
    "embed": _task("embedding", {"embedding"}),
    "embed-lora": _task("embedding", {"embedding"}, package={"rank": 4, "seed": 1}),
    "embed-cls": _task(
        "embedding", {"embedding"}, pooling="cls", normalize=False, package={"rank": 2, "targets": ATTENTION, "seed": 2}
    ),
    "sentiment": _task(
        "classification", {"label", "scores"}, labels=LABELS, package={"rank": 8, "targets": tuple(LINEARS), "seed": 3}
    ),
    "topics": _task(
        "classification", {"labels", "scores"}, labels=tuple("abcde"), multi_label=True, package={"seed": 4}
    ),
    "stars": _task("regression", {"value"}, package={"rank": 4, "seed": 5, "config": {"use_rslora": True}}),
    "entities": _task(
        "tagging", {"spans"}, labels=("person", "place"), package={"rank": 16, "targets": ATTENTION, "seed": 6}
    ),
    "similar": _task("similarity", {"score"}, pairs(), package={"rank": 4, "seed": 7}),
    "ranker": _task("ranking", {"score"}, pairs(), package={"rank": 8, "seed": 8}),
    "raw": _task("features", {"features"}),
}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the fleet: `fleet.toml`, `artifacts/`, `vfms/` (packages of the tests), `data/` (logs)."""
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="session")
def fleet(place: Path) -> Iterator[LocalFleet]:
    config = write_minilm_fleet(place, gateway={"max_body_bytes": 4_194_304, "max_package_bytes": MAX_PACKAGE})
    with LocalFleet(config, port=0, data=place / "data") as running:
        with Client(running.gateway_url) as client:
            for name, task in TASKS.items():
                client.vfms.deploy(write_package(place / "vfms" / name, task.head, **task.package))
        yield running
        assert running.dead() == [], "a role died during the tests"


@pytest.fixture(scope="session")
def references(fleet: LocalFleet) -> dict[str, list[Any]]:
    """What each vFM answers to its inputs when each has the fleet for itself."""
    with Client(fleet.gateway_url) as client:
        return {name: [client.infer(name, value).output for value in task.inputs] for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def traffic(fleet: LocalFleet, references: dict[str, list[Any]]) -> Iterator[Traffic]:
    wanted = {name: (task.inputs, references[name]) for name, task in TASKS.items() if name in NEIGHBOURS}
    running = Traffic(fleet.gateway_url, wanted)
    yield running
    running.close()


@pytest.fixture
def neighbours(traffic: Traffic) -> Iterator[None]:
    """Beside every test that uses this good requests run to other vFMs: none fails, none answers something else."""
    before = traffic.rounds
    yield
    traffic.check(before)


@pytest.fixture(params=["http", "redis"])
def url(request: pytest.FixtureRequest, fleet: LocalFleet) -> str:
    """Both ways to the fleet."""
    return fleet.gateway_url if request.param == "http" else fleet.broker_url


@pytest.fixture
async def client(url: str, fleet: LocalFleet) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url, artifacts=fleet.artifacts, retries=0) as fm:
        yield fm


@pytest.fixture
def http(fleet: LocalFleet) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fleet.gateway_url, timeout=90) as client:
        yield client


@pytest.fixture
def fmplex(fleet: LocalFleet, tmp_path: Path) -> Shell:
    """The command line in a folder of the test's own."""
    return Shell(tmp_path, fleet.gateway_url)


@pytest.fixture(scope="session")
def broker(fleet: LocalFleet) -> Iterator[Broker]:
    looking = Broker(fleet.broker_url)
    yield looking
    looking.close()


_numbers = count(1)


@pytest.fixture
def new_vfm(fleet: LocalFleet, place: Path) -> Iterator[Callable[..., str]]:
    """Deploys a vFM of the test's own, by default an embedding; returns its name. It goes when the test ends."""
    names: list[str] = []
    with Client(fleet.gateway_url) as client:

        def make(head: dict[str, Any] | None = None, **parts: Any) -> str:
            name = f"own-{next(_numbers)}"
            client.vfms.deploy(write_package(place / "vfms" / name, head or {"kind": "embedding"}, **parts))
            names.append(name)
            return name

        yield make
        left = {vfm.name for vfm in client.vfms.list()}
        for name in names:
            if name in left:
                client.vfms.remove(name)


@pytest.fixture
def age(fleet: LocalFleet) -> Callable[[str], None]:
    """Makes the stored artifact of a version two hours old."""

    def make_old(version: str) -> None:
        then = time.time() - 7200
        os.utime(Path(fleet.artifacts) / f"{artifact_of(version)}.fmplex", (then, then))

    return make_old
