"""Messages between `fmplex fit` and the process that trains: one `FitSpec` a line in, one event a line out (JSON).

The client starts `python -m fmplex_worker.tuning`, writes any number of `FitSpec` lines to its standard input and reads
`FitEvent` lines from its standard output until each spec has ended in `done` or `failed`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmplex_broker.specs.fleet import Dtype
from fmplex_broker.specs.heads import InputSpec, Pooling
from fmplex_broker.specs.schema import Name, Spec

# A rate or a scale: of larger ones the steps overflow float32, and JSON would make nothing at all of an infinite one.
Factor = Annotated[float, Field(gt=0, le=1e30)]
FitHead = Literal["embedding", "classification", "regression", "tagging", "similarity", "ranking"]


class LoraSpec(Spec):
    """LoRA as PEFT names it: rank `r`, scale `alpha` (None: 2 `r`), `dropout` while it is trained, `targets`: names of layers
    (None: every linear layer of the encoder blocks)."""

    r: int = Field(default=8, ge=1, le=512)
    alpha: Factor | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = None


class Ia3Spec(Spec):
    """(IA)³ as PEFT names it: one vector a layer scales its output, or, for the layers called `feedforward`, its input.
    `targets`: names of layers (None: every linear layer of the encoder blocks)."""

    targets: tuple[str, ...] | None = None
    feedforward: tuple[str, ...] = ()


class FitSpec(Spec):
    """Train one vFM package from labelled data.

    `backbone` is the name the vFM will ask for, `model` the local folder or hub id of its weights; `revision`, `dtype` and
    `max_tokens` are those with which it is hosted. `pooling`: default as for embeddings. `truncate`: texts that are too long are
    cut, when the vFM is called too; `input`: what else the vFM does with texts, and so does the training. Without `lora` and
    `ia3`, of which one may be given, the backbone is frozen and only the head is trained, on features computed once. `hidden`:
    widths of hidden layers (ReLU), for heads that have weights. The last `held_out` share of the data is never trained on: the
    score is measured there. "Last" is by the order of the file or, with `shuffle`, by a random one that `seed` decides.
    `patience`: epochs without a better score (on a slice of the training part) before training stops early.
    `learning_rate_multiplier`: of the learning rate, or of its default.
    """

    name: Name
    data: Path
    backbone: Name
    model: str
    out: Path
    head: FitHead
    revision: str | None = None
    dtype: Dtype = "float32"
    max_tokens: int | None = Field(default=None, ge=1)
    truncate: bool = False
    input: InputSpec = InputSpec()
    pooling: Pooling | None = None
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(default=(), max_length=8)
    lora: LoraSpec | None = None
    ia3: Ia3Spec | None = None
    epochs: int = Field(default=30, ge=1, le=10_000)
    batch_size: int = Field(default=16, ge=1, le=4096)
    learning_rate: Factor | None = None  # None: a good default for the kind
    learning_rate_multiplier: float = Field(default=1.0, gt=0, le=1e6)
    seed: int = 0
    held_out: float = Field(default=1 / 3, gt=0, lt=1)
    shuffle: bool = False
    patience: int = Field(default=5, ge=1)
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_adapter(self) -> FitSpec:
        if self.lora is not None and self.ia3 is not None:
            raise ValueError("lora and ia3: a vFM has one adapter; leave one of the two out")
        return self


class FitStarted(Spec):
    """Training begins, on `train` rows; `held_out` others are for the score. `labels`: as found in the data; `ignored`:
    keys of the data that say nothing to this head."""

    event: Literal["started"] = "started"
    name: str
    train: int
    held_out: int
    labels: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


class FitEpoch(Spec):
    """One epoch of `epochs` at most has ended. `score` is on the validation slice."""

    event: Literal["epoch"] = "epoch"
    name: str
    epoch: int
    epochs: int
    loss: float
    score: float


class FitDone(Spec):
    """The package of the vFM `name`, with the digest `artifact`, lies in `out`; training took `epochs` and `seconds`. `score` and
    `baseline` are on the held-out part, by `metric`; `baseline` is what always answering the most frequent label (or the mean)
    would score."""

    event: Literal["done"] = "done"
    name: str
    out: Path
    artifact: str
    metric: str
    score: float
    baseline: float
    epochs: int
    seconds: float


class FitFailed(Spec):
    """Training has failed with an error of this `code` (see `fmplex_broker.errors`)."""

    event: Literal["failed"] = "failed"
    name: str
    code: str
    message: str
    field: str | None = None


FitEvent = Annotated[FitStarted | FitEpoch | FitDone | FitFailed, Field(discriminator="event")]
