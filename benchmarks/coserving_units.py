"""Training by units, alone and in this process: their time and memory beside one backward through the whole model; how well their
time is predicted; shares of two trainings by weight; and what checkpoints take."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.coserving_kinds import Kind, Size, examples_file
from benchmarks.harness import Report, interleave
from fmplex_broker.specs.fitting import LoraSpec
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.backbones.texts import Text
from fmplex_worker.packed.row import TokenSpan, pack
from fmplex_worker.scheduling import UnitQueue
from fmplex_worker.training import TuneOrder, Unit
from fmplex_worker.tuning.fresh import fresh_lora
from fmplex_worker.tuning.opening import open_run
from fmplex_worker.tuning.pace import Pace
from fmplex_worker.tuning.run import Run
from fmplex_worker.tuning.units import MicroBatch
from fmplex_worker.tuning.walk import Walk

_TEXT = 64  # tokens
_WEIGHTS = {"one": 1.0, "two": 2.0}
_APART_S, _TIMES = 5.0, 50  # a worker's checkpoints: at least so many seconds, and times as long as one takes


class MicroBatches:
    """One micro-batch, in every way that it can be run."""

    def __init__(self, backbone: Backbone, tokens: int) -> None:
        self._walk = Walk(backbone)
        self._learnt = fresh_lora(backbone, LoraSpec(r=8), 0)
        self._texts = [Text.of_ids(np.arange(_TEXT) + 1000 + n) for n in range(tokens // _TEXT)]
        self._weights = torch.randn(tokens, backbone.hidden, generator=torch.Generator().manual_seed(0))
        held = (*backbone.model.parameters(), *backbone.model.buffers(), *self._learnt.parameters.values())
        self._pace = Pace()
        self._held = {tensor.untyped_storage().data_ptr() for tensor in held}
        self._inputs = (self._walk.layers + 1) * tokens * backbone.hidden * 4  # bytes that go into the layers

    def _loss(self, hidden: Tensor) -> Tensor:
        return (hidden * self._weights).sum() / len(self._weights)

    def monolithic(self) -> None:
        """Run it as one forward and one backward."""
        backbone = self._walk.backbone
        adapter = self._learnt.adapter(None)
        row = pack([TokenSpan(text.tokens, adapter) for text in self._texts], backbone.device, None)
        self._loss(backbone.encode(row, self._texts)).backward()
        self._forget()

    def units(self, keep: int | None = None) -> None:
        """Run it by units, of which the last `keep` layers keep their activations; None: all."""
        kept = self._walk.layers if keep is None else keep
        batch = MicroBatch(self._walk, self._learnt, self._texts, self._loss, keep=kept, key=None)
        for unit in batch.units(self._pace):
            unit.run()
        self._forget()

    def _forget(self) -> None:
        for parameter in self._learnt.parameters.values():
            parameter.grad = None

    def saved(self) -> float:
        """Return the bytes that units with recompute keep at most, over those of one backward."""
        with _counting(self._held) as whole:
            self.monolithic()
        with _counting(self._held) as again:
            self.units(keep=0)
        return (again.peak + self._inputs) / whole.peak


class _Saved:
    """Bytes that autograd keeps now, and at most; what several operations keep counts once."""

    def __init__(self) -> None:
        self._count: Counter[int] = Counter()
        self._now = self.peak = 0

    def add(self, pointer: int, nbytes: int) -> None:
        """Count what is kept once more."""
        self._now += 0 if self._count[pointer] else nbytes
        self._count[pointer] += 1
        self.peak = max(self.peak, self._now)

    def drop(self, pointer: int, nbytes: int) -> None:
        """Count what is kept once less."""
        self._count[pointer] -= 1
        self._now -= 0 if self._count[pointer] else nbytes


class _Keeper:
    """Holds a tensor for autograd until its graph goes."""

    def __init__(self, tensor: Tensor, saved: _Saved | None) -> None:
        self.tensor, self._saved = tensor, saved
        memory = tensor.untyped_storage()
        self._of = memory.data_ptr(), memory.nbytes()
        if saved is not None:
            saved.add(*self._of)

    def __del__(self) -> None:
        if self._saved is not None:
            self._saved.drop(*self._of)


@contextmanager
def _counting(held: set[int]) -> Iterator[_Saved]:
    """Count what autograd keeps until the block ends, but for the memory that is `held` anyway."""
    saved = _Saved()

    def keep(tensor: Tensor) -> _Keeper:
        known = tensor.untyped_storage().data_ptr() in held
        return _Keeper(tensor.detach(), None if known else saved)

    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        yield saved
    gc.collect()


class Trainings:
    """Two trainings of one backbone, whose units take turns by weight as on a worker, with nothing beside them."""

    def __init__(self, kind: Kind, model: Path, folder: Path, backbone: Backbone) -> None:
        data = examples_file(kind, folder)
        order = TuneOrder(kind.spec(model, data, folder / "out"))
        self._runs = {name: open_run(order, backbone, None) for name in _WEIGHTS}
        self._queue = UnitQueue()
        self._next = {name: _first_backward(run) for name, run in self._runs.items()}
        for name, weight in _WEIGHTS.items():
            self._queue.add(name, weight)
            self._offer(name)

    def _offer(self, name: str) -> None:
        unit = self._next[name]
        self._queue.offer(name, unit.kind, unit.cost, time.monotonic())

    def run(self, seconds: float) -> tuple[dict[str, float], list[float]]:
        """Run units for so long. Returns the seconds of each training, and by how much each prediction was off, in parts of what
        the unit took."""
        took: dict[str, float] = dict.fromkeys(_WEIGHTS, 0.0)
        errors: list[float] = []
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            name = self._queue.pick(began)
            assert name is not None
            self._next[name].run()
            following = self._runs[name].next()
            assert following is not None, "it was to train for longer than this"
            ended = time.monotonic()
            predicted = self._queue.charge(ended - began, ended)
            took[name] += ended - began
            errors.append(abs(predicted - (ended - began)) / (ended - began))
            self._next[name] = following
            self._offer(name)
        return took, errors

    def checkpoint(self) -> tuple[float, float]:
        """Return the parts of a worker's time that its checkpoints take of the device thread, and of all threads."""
        run = self._runs["one"]
        began = time.perf_counter()
        snapshot = run.snapshot()
        device = time.perf_counter() - began
        files = snapshot.package()
        with tempfile.TemporaryFile() as file:
            file.write(snapshot.dump())
            for content in files.values():
                file.write(content)
        whole = time.perf_counter() - began
        apart = max(_APART_S, _TIMES * whole)
        return device / apart, whole / apart


def _first_backward(run: Run) -> Unit:
    """Run what comes before it: features, and a head on them. Returns the first unit of the second step."""
    while (unit := run.next()) is not None and unit.kind != "backward":
        unit.run()
    assert unit is not None
    return unit


def measure(report: Report, kind: Kind, model: Path, deep: Path, prefix: str) -> None:
    """Measure units of the `deep` model, and trainings of `model`; names of samples begin with `prefix`."""
    quick = report.options.quick
    torch.set_num_threads(1)
    batches = MicroBatches(_load(deep), 128 if quick else 512)

    def turn(name: str, call: Callable[[], None]) -> dict[str, float]:
        begun = time.perf_counter()
        call()
        return {f"{prefix}{name}_s": time.perf_counter() - begun}

    ways: dict[str, Callable[[], None]] = {
        "monolithic": batches.monolithic,
        "units": batches.units,
        "recompute": partial(batches.units, 0),
    }
    interleave(report, {name: partial(turn, name, call) for name, call in ways.items()}, 2 if quick else 7)
    report.add({f"{prefix}saved_activations": batches.saved()})
    with tempfile.TemporaryDirectory(prefix="fmplex-coserving-") as place:
        trainings = Trainings(kind, model, Path(place), _load(model))
        trainings.run(0.5 if quick else 3.0)
        for _ in range(report.options.rounds):
            took, errors = trainings.run(1.0 if quick else 3.0)
            share = took["two"] / sum(took.values())
            report.add(
                {
                    f"{prefix}prediction_error_p50": statistics.median(errors),
                    f"{prefix}weights_error": abs(share / (2 / 3) - 1),
                }
            )
            device, whole = trainings.checkpoint()
            report.add({f"{prefix}checkpoint_device_share": device, f"{prefix}checkpoint_share": whole})


def _load(model: Path) -> Backbone:
    return load_backbone(BackboneSpec(name="alone", model=str(model)), "cpu")


def sizes(quick: bool) -> dict[str, Size]:
    """Return the sizes of what is served and trained, and of what only units are measured of, which is deep."""
    if quick:
        return {"model": Size(192, 2), "deep": Size(192, 4)}
    return {"model": Size(384, 6), "deep": Size(384, 12)}
