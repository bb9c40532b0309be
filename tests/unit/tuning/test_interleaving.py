"""Trainings and passes share a backbone in any order, and none of them sees the others: LoRA, (IA)³ and heads, on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.heads import Regression
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
# What passes are of: two LoRAs of one rank, which together take the grouped kernel, and an (IA)³ with a head.
VERSIONS = 3
JOBS = (
    {"kind": "lora", "keep": 0, "dropout": 0.3, "head": False},
    {"kind": "ia3", "keep": 1, "dropout": 0.0, "head": False},
    {"kind": "lora", "keep": 2, "dropout": 0.1, "head": True},
)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@dataclass
class Shared:
    """A backbone that serves, and all that is asked of it; and what each of that gives alone."""

    engine: PackedEngine
    walk: Walk
    folder: Path
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    alone: dict[int, list[Any]] = field(
        default_factory=dict
    )  # a job -> gradients, losses and evaluations, step by step
    outputs: dict[tuple[int, ...], list[Any]] = field(default_factory=dict)  # of a pass of these versions

    def load(self, at: int) -> str:
        """Load a version; returns its digest."""
        backbone, folder = self.engine._backbone, self.folder / str(at)
        if not folder.exists():
            folder.mkdir()
            learnt = training.lora(backbone, seed=50 + at, r=8) if at < 2 else training.ia3(backbone, seed=50)
            training.save(learnt, folder / "adapter")
            tiny.head_file(folder / "head", 1, hidden=backbone.hidden)
        if at < 2:
            return tiny.load(self.engine, tiny.FEATURES, adapter=folder / "adapter")
        return tiny.load(self.engine, Regression(), adapter=folder / "adapter", weights=folder / "head")

    def output(self, loaded: Mapping[int, str], of: Sequence[int]) -> list[Any]:
        """What one pass of some versions gives."""
        results = tiny.run(self.engine, *((loaded[at], {"input_ids": tiny.ids(9 + at)[0]}) for at in of))
        return [bytes(one["features"].data) if "features" in one else one["value"] for one in results]


@pytest.fixture(scope="module", params=FAMILIES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    folder = tiny.save_model(request.param, tmp_path_factory.mktemp(request.param))
    engine = open_engine(BackboneSpec(name=tiny.NAME, model=str(folder)), WorkerSpec(device="cpu"))
    engine._group_from = 2
    made = Shared(engine, Walk(engine._backbone), tmp_path_factory.mktemp("versions"))
    made.weights = {name: w.clone() for name, w in engine._backbone.model.state_dict().items()}
    loaded = {at: made.load(at) for at in range(VERSIONS)}
    for count in range(1, VERSIONS + 1):
        made.outputs |= {of: made.output(loaded, of) for of in combinations(loaded, count)}
    for at in range(len(JOBS)):
        seen: list[Any] = []
        training.run(course(made.walk, at, seen))
        made.alone[at] = seen
    return made


def course(walk: Walk, at: int, seen: list[Any]) -> Iterator[Unit]:
    """Three steps of a job, each of two micro-batches, and an evaluation after each; what came of them goes into `seen`."""
    job, backbone = JOBS[at], walk.backbone
    learnt = training.ia3(backbone, at) if job["kind"] == "ia3" else training.lora(backbone, at, dropout=job["dropout"])
    head = head_of(backbone.hidden) if job["head"] else None
    for step in range(3):
        for part in range(2):
            lengths = (4 + at + step, 11, 6 + part)
            loss = training.loss_of(sum(lengths), backbone.hidden if head is None else 3, seed=step)
            texts, key = training.texts(*lengths, seed=10 * step + part), DropoutKey(at, step, part)
            through = loss if head is None else compose(loss, head)
            batch = MicroBatch(walk, learnt, texts, through, keep=int(job["keep"]), key=key)
            yield from batch.units(training.Steady(1))
            seen.append(batch.value)
        yield Unit("step", 0, 1.0, partial(descend, learnt, head, seen))
        yield from check_units(walk, learnt, training.texts(8, seed=99), seen.append, training.Steady(1))


def head_of(width: int) -> nn.Linear:
    head = nn.utils.skip_init(nn.Linear, width, 3)
    for parameter in head.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(7))
    return head


def compose(loss: training.Loss, head: nn.Linear) -> training.Loss:
    return lambda hidden: loss(head(hidden))


def descend(learnt: Learnt, head: nn.Linear | None, seen: list[Any]) -> None:
    parameters = learnt.parameters | ({} if head is None else dict(head.named_parameters()))
    for parameter in parameters.values():
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        seen.append(gradient)
        with torch.no_grad():
            parameter -= 0.1 * gradient


def assert_as_alone(seen: list[Any], alone: list[Any]) -> None:
    assert len(seen) == len(alone)
    for one, other in zip(seen, alone, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
            loaded.setdefault(at := data.draw(st.integers(0, VERSIONS - 1)), shared.load(at))
        elif loaded and what == "pass":
            of = tuple(sorted(data.draw(st.sets(st.sampled_from(sorted(loaded)), min_size=1))))
            assert shared.output(loaded, of) == shared.outputs[of]
        elif loaded:
            shared.engine.unload(loaded.pop(data.draw(st.sampled_from(sorted(loaded)))))
    for at in jobs:
        assert_as_alone(seen[at], shared.alone[at])
    for name, weight in shared.engine._backbone.model.state_dict().items():
        assert torch.equal(weight, shared.weights[name]), name


def test_jobs_differ(shared: Shared) -> None:
    """So that to mix them up would show."""
    losses = [[value for value in seen if isinstance(value, float)] for seen in shared.alone.values()]
    assert len({tuple(values) for values in losses}) == len(JOBS)
    assert len({repr(shared.outputs[at,]) for at in range(VERSIONS)}) == VERSIONS
