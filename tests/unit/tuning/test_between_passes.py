"""A real training in the hands of a worker's device task: it ends as it does by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_worker import World
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.host.device_thread import DeviceThread
from fmplex_worker.host.training_job import TrainingJob
from fmplex_worker.protocol import Outcome, Work
from fmplex_worker.training import TuneOrder
from fmplex_worker.tuning.opening import open_run
from fmplex_worker.tuning.run import Run
from tests.unit.tuning import learnable
from tests.unit.tuning.conftest import SpecFor


@pytest.fixture(scope="module")
def bert(model: Path) -> Backbone:
    return load_backbone(BackboneSpec(name="tiny", model=str(model)), "cpu")


class Passes:
    """Passes of jobs that the worker serves meanwhile, which take a millisecond."""

    def step(self, work: Sequence[Work]) -> Outcome:
        time.sleep(0.001)
        return Outcome(0.001, ["done"] * len(work))


def result(run: Run) -> tuple[Any, ...]:
    return run.package(), run.snapshot().package(), run.progress, run.snapshot().dump()


@pytest.mark.parametrize("kind", ["lora", "head"])
async def test_between_the_passes_of_a_worker_it_ends_the_same(spec_for: SpecFor, bert: Backbone, kind: str) -> None:
    """Whoever runs its units, and whatever of its state is taken meanwhile."""
    more: dict[str, Any] = {"lora": {"r": 2, "dropout": 0.1}} if kind == "lora" else {}
    order = TuneOrder(spec_for("classification", learnable.MAKERS["classification"]()[:40], epochs=2, **more))
    whole = open_run(order, bert, None)
    while unit := whole.next():
        unit.run()
    job = TrainingJob("t", "t", 1.0, open_run(order, bert, None))
    states: list[int] = []
    with ThreadPoolExecutor(1) as executor:
        async with World(time.monotonic, device=DeviceThread(Passes(), executor)) as world:  # type: ignore[arg-type]
            assert world.turn
            await world.turn.add(job)
            while not job.over:
                world.come("a", target_ms=1000)
                await job.news.wait()
                job.news.clear()
                if job.cut is not None:
                    states.append(job.cut.step)
                    job.cut = None
    assert job.error is None
    assert result(job.training) == result(whole)  # type: ignore[arg-type]
    assert states
    assert states == sorted(set(states))
