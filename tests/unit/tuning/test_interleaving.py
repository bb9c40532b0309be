"""Trainings and passes share a backbone in any order, and none of them sees the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from fmplex_worker.training import Unit
from fmplex_worker.tuning.learnt import DropoutKey, Learnt
from fmplex_worker.tuning.units import MicroBatch, check_units
from fmplex_worker.tuning.walk import Walk
from tests.support import tiny, training

FAMILIES = (
    "bert",
    "llama",
    pytest.param("gemma3_text", marks=pytest.mark.long),
    pytest.param("t5", marks=pytest.mark.long),
)
ADAPTERS = 3  # of the passes
JOBS = (
    {"keep": 0, "dropout": 0.3, "seed": 1},
    {"keep": 1, "dropout": 0.0, "seed": 2},
    {"keep": 2, "dropout": 0.1, "seed": 3},
)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@dataclass
class Shared:
    """A backbone that serves, and all that is asked of it; and what each of that gives alone."""

    engine: PackedEngine
    walk: Walk
    adapters: list[Path]
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    alone: dict[int, list[Any]] = field(
        default_factory=dict
    )  # a job -> gradients, losses and evaluations, step by step
    outputs: list[bytes] = field(default_factory=list)  # of each adapter's pass

    def load(self, at: int) -> str:
        return tiny.load(self.engine, tiny.FEATURES, adapter=self.adapters[at])

    def output(self, digest: str, at: int) -> bytes:
        (job,) = self.engine.prepare([(digest, Request({"input_ids": tiny.ids(9 + at)[0]}, {}))])
        (result,) = tiny.step(self.engine, [job])
        return bytes(result["features"].data)


@pytest.fixture(scope="module", params=FAMILIES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tiny.save_model(request.param, tmp_path_factory.mktemp(request.param))
    engine = open_engine(BackboneSpec(name=tiny.NAME, model=str(folder)), WorkerSpec(device="cpu"))
    adapters = []
    for at in range(ADAPTERS):
        learnt = training.lora(engine._backbone, seed=50 + at, r=2 + at)
        adapters.append(training.save(learnt, tmp_path_factory.mktemp("adapter") / "adapter"))
    made = Shared(engine, Walk(engine._backbone), adapters)
    made.weights = {name: w.clone() for name, w in engine._backbone.model.state_dict().items()}
    made.outputs = [made.output(made.load(at), at) for at in range(ADAPTERS)]
    for at in range(len(JOBS)):
        seen: list[Any] = []
        training.run(course(made.walk, at, seen))
        made.alone[at] = seen
    return made


def course(walk: Walk, at: int, seen: list[Any]) -> Iterator[Unit]:
    """Three steps of a job, each of two micro-batches, and an evaluation after each; what came of them goes into `seen`."""
    job = JOBS[at]
    learnt = training.lora(walk.backbone, seed=int(job["seed"]), dropout=job["dropout"])
    for step in range(3):
        for part in range(2):
            lengths = (4 + at + step, 11, 6 + part)
            loss = training.loss_of(sum(lengths), walk.backbone.hidden, seed=step)
            texts, key = training.texts(*lengths, seed=10 * step + part), DropoutKey(at, step, part)
            batch = MicroBatch(walk, learnt, texts, loss, keep=int(job["keep"]), key=key)
            yield from batch.units(layers=1)
            seen.append(batch.value)
        yield Unit("step", 0, 1.0, lambda: descend(learnt, seen))
        yield from check_units(walk, learnt, training.texts(8, seed=99), seen.append, layers=1)


def descend(learnt: Learnt, seen: list[Any]) -> None:
    for name, gradient in training.gradients(learnt).items():
        assert gradient is not None
        seen.append(gradient)
        with torch.no_grad():
            learnt.parameters[name] -= 0.1 * gradient


def assert_as_alone(seen: list[Any], alone: list[Any]) -> None:
    assert len(seen) == len(alone)
    for one, other in zip(seen, alone, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_units_passes_loads_and_unloads_changes_nothing(shared: Shared, data: st.DataObject) -> None:
    """Gradients, losses, evaluations and outputs are to the bit what they are alone; the backbone stays as it is."""
    jobs = data.draw(st.lists(st.sampled_from(range(len(JOBS))), min_size=1, max_size=3, unique=True))
    seen: dict[int, list[Any]] = {at: [] for at in jobs}
    courses = {at: course(shared.walk, at, seen[at]) for at in jobs}
    loaded: dict[int, str] = {}
    while courses:
        what = data.draw(st.sampled_from(["unit", "unit", "unit", "pass", "load", "unload"]))
        if what == "unit":
            at = data.draw(st.sampled_from(sorted(courses)))
            for _ in range(data.draw(st.integers(1, 12))):
                unit = next(courses[at], None)
                if unit is None:
                    del courses[at]
                    break
                unit.run()
        elif what == "load":
            loaded.setdefault(at := data.draw(st.integers(0, ADAPTERS - 1)), shared.load(at))
        elif loaded:
            at = data.draw(st.sampled_from(sorted(loaded)))
            if what == "pass":
                assert shared.output(loaded[at], at) == shared.outputs[at]
            else:
                shared.engine.unload(loaded.pop(at))
    for at in jobs:
        assert_as_alone(seen[at], shared.alone[at])
    for name, weight in shared.engine._backbone.model.state_dict().items():
        assert torch.equal(weight, shared.weights[name]), name


def test_jobs_differ(shared: Shared) -> None:
    """So that to mix them up would show."""
    losses = [[value for value in seen if isinstance(value, float)] for seen in shared.alone.values()]
    assert len({tuple(values) for values in losses}) == len(JOBS)
    assert len(set(shared.outputs)) == ADAPTERS
