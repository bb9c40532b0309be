"""Engines are opened once a family and shared: versions are cheap, and no test depends on which are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.engine import isolation
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from tests.support import tiny

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "broken_pass: the test makes a pass fail on purpose")


@pytest.fixture(autouse=True)
def _no_pass_fails(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A pass that fails is run again vFM by vFM, which would hide what mixing them breaks."""
    yield
    if request.node.get_closest_marker("broken_pass") is None:
        assert [r.getMessage() for r in caplog.records if r.name == isolation.__name__] == []


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family → folder of its tiny model."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tiny.save_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture(scope="session")
def engine_of(model_folder: Callable[[str], Path]) -> Callable[[str], PackedEngine]:
    """Family → an engine on its tiny model."""
    opened: dict[str, PackedEngine] = {}

    def engine(family: str) -> PackedEngine:
        if family not in opened:
            spec = BackboneSpec(name=tiny.NAME, model=str(model_folder(family)))
            opened[family] = open_engine(spec, WorkerSpec(device="cpu"))
        return opened[family]

    return engine


@pytest.fixture
def bert(engine_of: Callable[[str], PackedEngine]) -> PackedEngine:
    return engine_of("bert")
