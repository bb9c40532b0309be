"""What the training of a head is given: examples as the backbone takes them, the task, the vFM that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from pydantic import ValidationError

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.files import read_rows
from fmplex_broker.examples.reading import Example, Parser, read
from fmplex_broker.examples.records import LabelRecord, Record
from fmplex_broker.examples.split import Labelled, check_apart
from fmplex_broker.packages.sentences import SentenceModel
from fmplex_broker.specs.fitting import FitHead, FitSpec
from fmplex_broker.specs.heads import Head, InputSpec, Pooling
from fmplex_broker.specs.schema import invalid
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.texts import Raw
from fmplex_worker.tuning.encoder import EncodedExample, tokenize
from fmplex_worker.tuning.linear_tasks import (
    ClassificationTask,
    MultiLabelTask,
    RankingTask,
    RegressionTask,
    TaggingTask,
)
from fmplex_worker.tuning.metric_tasks import EmbeddingTask, SimilarityTask
from fmplex_worker.tuning.slices import ValidationSplit, validation_split
from fmplex_worker.tuning.tasks import Task
from fmplex_worker.workloads.encoding.preparing import templated, within


class HeadData(NamedTuple):
    """The data of a training: `train`, of which `chosen` says what validates, and `held`, which are never trained on. `whole`:
    positions of those that the head may be fitted to in the end. `ignored`: keys of the file that say nothing to the head."""

    task: Task[Record]
    vfm: VfmSpec
    train: list[EncodedExample]
    held: list[EncodedExample]
    chosen: ValidationSplit
    whole: list[int]
    ignored: tuple[str, ...]


def read_data(spec: FitSpec, backbone: Backbone, validation: Path | None, adapts: bool) -> HeadData:
    """Read and check all that a training is given; `adapts`: an adapter learns too. Raises `InvalidInput`."""
    split = read(spec.data, spec.head, spec.held_out, spec.seed if spec.shuffle else None)
    spec = spec.model_copy(update={"pooling": _pooling(spec, backbone.sentence)})
    task = task_for(spec, [example.record for example in split.train], adapts)
    _check_pooling(spec, task, backbone)
    vfm = VfmSpec(name=spec.name, backbone=spec.backbone, head=_head(spec, task), input=_input(spec, backbone.sentence))
    items = _items(task, backbone, [*split.train, *split.held_out], vfm.input)
    train, held = items[: len(split.train)], items[len(split.train) :]
    every = [*range(len(train))]
    if validation is None:
        chosen = validation_split(train, torch.Generator().manual_seed(spec.seed % 2**63))
        return HeadData(task, vfm, train, held, chosen, every, split.ignored)
    apart = _read_apart(validation, spec.head, split.train)
    more = _items(task, backbone, apart, vfm.input)
    chosen = ValidationSplit(every, [*range(len(train), len(train) + len(more))])
    return HeadData(task, vfm, [*train, *more], held, chosen, every, split.ignored)


def _read_apart(path: Path, head: FitHead, train: Sequence[Example[Record]]) -> list[Example[Record]]:
    """Read examples that only validate. Raises `InvalidInput` (field `validation`)."""
    parser = Parser(head)
    try:
        apart = [example for row in read_rows(path) if (example := parser.take(row)) is not None]
        parser.check(str(path))
        check_apart(head, [Labelled.of(*one) for one in train], (Labelled.of(*one) for one in apart), str(path))
    except InvalidInput as e:
        raise InvalidInput(e.message, field="validation") from None
    return apart


def task_for(spec: FitSpec, records: Sequence[Record], adapts: bool) -> Task[Record]:
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
        "embedding": lambda r: EmbeddingTask(r, pooling, contrast=adapts),
    }
    try:
        return cast(Task[Record], kinds[spec.head](records))
    except ValidationError as e:  # more labels than a head may have
        raise InvalidInput(invalid(e, str(spec.data)).message, field="data") from None


def _head(spec: FitSpec, task: Task[Record]) -> Head:
    if spec.hidden and not task.outputs:
        raise InvalidInput(f"a {spec.head} head has no weights, so no hidden layers; leave hidden out", field="hidden")
    return task.head.model_copy(update={"hidden": spec.hidden}) if spec.hidden else task.head


def _check_pooling(spec: FitSpec, task: Task[Record], backbone: Backbone) -> None:
    if task.pooling == "cls" and backbone.family.causal:
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
    around = spec.input.model_copy(update={"truncate": spec.truncate or spec.input.truncate})
    prompted = own is not None and own.default_prompt and spec.head in ("embedding", "similarity")
    if prompted:
        whole = {"template": around.template or "{text}", "pair_template": around.pair_template or "{text_pair}"}
        return around.model_copy(update=whole)
    return around


def _items(
    task: Task[Record], backbone: Backbone, examples: Sequence[Example[Record]], around: InputSpec
) -> list[EncodedExample]:
    raws = [[*templated(around, task.texts(example.record))] for example in examples]
    lines = [example.place for example, some in zip(examples, raws, strict=True) for _ in some]
    every = cast(list[Raw], [raw for some in raws for raw in some])
    tagging = task.pooling is None  # nothing else asks which characters a token covers
    texts = iter(tokenize(backbone, every, lines, tagging, around))
    items = []
    for example, some in zip(examples, raws, strict=True):
        own = tuple(next(texts) for _ in some)
        if tagging:
            (text,) = own
            own = (replace(text, offsets=within(text.offsets, around.lead, len(example.record.text))),)
        items.append(task.item(example.record, own))
    return items
