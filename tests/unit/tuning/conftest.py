"""One tiny BERT with random weights for all tests, and the data that it can learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fmplex_broker.specs.fitting import FitSpec
from tests.support.tiny import save_model
from tests.unit.tuning import learnable


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SpecFor = Callable[..., FitSpec]


@pytest.fixture
def spec_for(tmp_path: Path, model: Path) -> SpecFor:
    """A spec for a head, with learnable data unless `lines` are given; other arguments as `FitSpec` takes them."""

    def make(head: str, lines: list[dict[str, Any]] | None = None, **options: Any) -> FitSpec:
        data = tmp_path / "data.jsonl"
        learnable.write(data, lines if lines is not None else learnable.MAKERS[head]())
        given = {"name": "task", "data": data, "backbone": "tiny", "model": str(model), "out": tmp_path / "out"}
        return FitSpec.model_validate({**given, "head": head.split(":")[0], **options})

    return make
