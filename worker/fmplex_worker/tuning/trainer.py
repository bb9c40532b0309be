"""`fit`: one spec in, one package out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.reading import Example, read
from fmplex_broker.examples.records import LabelRecord, Record
from fmplex_broker.packages.sentences import SentenceModel
from fmplex_broker.packages.writing import refuse_foreign
from fmplex_broker.specs.fitting import FitDone, FitEpoch, FitEvent, FitSpec, FitStarted
from fmplex_broker.specs.heads import Head, InputSpec, Pooling
from fmplex_broker.specs.schema import invalid
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_worker.tuning.encoder import EncodedExample, Encoder, load
from fmplex_worker.tuning.frozen import fit_head
from fmplex_worker.tuning.linear_tasks import (
    ClassificationTask,
    MultiLabelTask,
    RankingTask,
    RegressionTask,
    TaggingTask,
)
from fmplex_worker.tuning.lora import adapt, fit_lora
from fmplex_worker.tuning.metric_tasks import EmbeddingTask, SimilarityTask
from fmplex_worker.tuning.settings import settings
from fmplex_worker.tuning.tasks import Predictions, Task
from fmplex_worker.tuning.training import Report, apply_head, validation_split
from fmplex_worker.tuning.writing import write_package


class TrainingResult(NamedTuple):
    """The result of a training. `head`: the tensors of head.safetensors, or nothing if it has no weights. `adapter`: the model
    that holds it, if any."""

    encoder: Encoder
    head: dict[str, Tensor]
    adapter: PeftModel | None
    epochs: int


def fit(spec: FitSpec, on_event: Callable[[FitEvent], None]) -> FitDone:
    """Train what `spec` asks for, write the package, measure it on the held-out part. `on_event` sees started, every epoch
    and, last, done, which is also returned.

    Raises a typed `FmplexError`: `InvalidInput` (its `field` says which part of the spec, `data` for bad lines), `Conflict`
    (`out` holds something else), `NonFiniteOutput` (training diverged). A failed fit leaves `out` as it was. The same spec,
    data and thread count on the same machine give the same package, bit by bit (CPU).
    """
    began = time.perf_counter()
    refuse_foreign(spec.out)
    split = read(spec.data, spec.head, spec.held_out, spec.seed if spec.shuffle else None)
    with settings(spec.seed, spec.threads):
        encoder = load(spec)
        spec = spec.model_copy(update={"pooling": _pooling(spec, encoder.backbone.sentence)})
        task = task_for(spec, [example.record for example in split.train])
        _check_pooling(spec, task, encoder)
        around = _input(spec, encoder.backbone.sentence)
        vfm = VfmSpec(name=spec.name, backbone=spec.backbone, head=_head(spec, task), input=around)
        items = _items(task, encoder, [*split.train, *split.held_out], spec.truncate)
        train, held = items[: len(split.train)], items[len(split.train) :]
        started = FitStarted(
            name=spec.name, train=len(train), held_out=len(held), labels=task.labels, ignored=split.ignored
        )
        on_event(started)
        trained = _train(spec, encoder, task, train, _reporter(spec, on_event))
        score = _score(trained, task, train, held)
    artifact = write_package(spec.out, vfm, trained.head, trained.adapter)
    done = FitDone(
        name=spec.name,
        out=spec.out,
        artifact=artifact,
        metric=task.metric,
        score=score,
        baseline=task.baseline(train, held),
        epochs=trained.epochs,
        seconds=time.perf_counter() - began,
    )
    on_event(done)
    return done


def task_for(spec: FitSpec, records: Sequence[Record]) -> Task[Record]:
    """Make the task of the spec's head. Raises `InvalidInput` if the training part cannot teach it."""
    pooling: Pooling = spec.pooling or "mean"
    kinds: dict[str, Callable[[Any], Any]] = {
        "classification": lambda r: (ClassificationTask if isinstance(r[0], LabelRecord) else MultiLabelTask)(
            r, pooling
        ),
        "regression": lambda r: RegressionTask(r, pooling),
        "tagging": lambda r: TaggingTask(r),
        "ranking": lambda r: RankingTask(r, pooling),
        "similarity": lambda r: SimilarityTask(r, pooling),
        "embedding": lambda r: EmbeddingTask(r, pooling, contrast=spec.lora is not None),
    }
    try:
        return cast(Task[Record], kinds[spec.head](records))
    except ValidationError as e:  # more labels than a head may have
        raise InvalidInput(invalid(e, str(spec.data)).message, field="data") from None


def _head(spec: FitSpec, task: Task[Record]) -> Head:
    if spec.hidden and not task.outputs:
        raise InvalidInput(f"a {spec.head} head has no weights, so no hidden layers; leave hidden out", field="hidden")
    return task.head.model_copy(update={"hidden": spec.hidden}) if spec.hidden else task.head


def _check_pooling(spec: FitSpec, task: Task[Record], encoder: Encoder) -> None:
    if task.pooling == "cls" and encoder.backbone.family.causal:
        raise InvalidInput(
            f"pooling 'cls' reads the first token, which in a causal backbone like {spec.model!r} sees nothing of the text; "
            "use 'last'",
            field="pooling",
        )


def _pooling(spec: FitSpec, own: SentenceModel | None) -> Pooling:
    """Return the pooling: if the spec has none that of the backbone, as embeddings get it. Raises `InvalidInput`."""
    if spec.pooling is not None:
        return spec.pooling
    if own is not None and own.unserved and spec.head != "tagging":
        raise InvalidInput(
            f"the backbone does not say a pooling that is served ({own.unserved}); give pooling", field="pooling"
        )
    return "mean" if own is None else own.pooling


def _input(spec: FitSpec, own: SentenceModel | None) -> InputSpec:
    """Return what the vFM does with texts: what this training does. The backbone's own prompt is not put before them."""
    prompted = own is not None and own.default_prompt and spec.head in ("embedding", "similarity")
    if prompted:
        return InputSpec(template="{text}", pair_template="{text_pair}", truncate=spec.truncate)
    return InputSpec(truncate=spec.truncate)


def _items(
    task: Task[Record], encoder: Encoder, examples: Sequence[Example[Record]], truncate: bool
) -> list[EncodedExample]:
    raws = [task.texts(example.record) for example in examples]
    lines = [example.place for example, some in zip(examples, raws, strict=True) for _ in some]
    # Only tagging asks which characters a token covers.
    texts = iter(
        encoder.tokenize([raw for some in raws for raw in some], lines, offsets=task.pooling is None, truncate=truncate)
    )
    return [task.item(e.record, tuple(next(texts) for _ in some)) for e, some in zip(examples, raws, strict=True)]


def _reporter(spec: FitSpec, on_event: Callable[[FitEvent], None]) -> Report:
    def report(epoch: int, loss: float, score: float) -> None:
        on_event(FitEpoch(name=spec.name, epoch=epoch, epochs=spec.epochs, loss=loss, score=score))

    return report


def _train(
    spec: FitSpec, encoder: Encoder, task: Task[Record], train: list[EncodedExample], report: Report
) -> TrainingResult:
    chosen = validation_split(train, torch.Generator().manual_seed(spec.seed % 2**63))
    head, epochs = None, 0
    if task.outputs:
        features = encoder.features(train, task.pooling)
        fitted = fit_head(task, train, features, chosen, spec, report if spec.lora is None else None)
        # Starting from a fitted head, the adapter is not trained to please a random one (Kumar et al. 2022).
        head, epochs = (fitted.head, fitted.epochs) if spec.lora is None else (fitted.learned, 0)
    adapter = None
    if spec.lora is not None:
        local = Path(spec.model).exists()  # a path of this machine is nobody else's business
        adapter = adapt(encoder, spec.lora, spec.backbone if local else spec.model)
        encoder = encoder.with_model(adapter)
        epochs = fit_lora(encoder, head, task, train, chosen, spec, report)
    return TrainingResult(encoder, {} if head is None else head.folded(), adapter, epochs)


def _score(
    trained: TrainingResult, task: Task[Record], train: list[EncodedExample], held: list[EncodedExample]
) -> float:
    """Score on the held-out part exactly what goes into the package."""
    rows = trained.encoder.features(held, task.pooling)
    if trained.head:
        outputs = apply_head(trained.head, rows)
        return task.score(Predictions(outputs, train), Predictions(outputs, held))
    return task.score(Predictions(trained.encoder.features(train, task.pooling), train), Predictions(rows, held))
