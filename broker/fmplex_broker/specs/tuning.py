"""What is ordered of a tuning job: on which data, how to train, and what becomes of it. Pure.

A tuning job trains a vFM on its backbone, beside inference. Its record is in `specs/tune_records.py`.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PlainValidator, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from fmplex_broker.specs.batches import Metadata
from fmplex_broker.specs.files import FileId
from fmplex_broker.specs.fitting import Factor, FitHead, Ia3Spec, LoraSpec
from fmplex_broker.specs.heads import InputSpec, Pooling
from fmplex_broker.specs.schema import Name, Spec
from fmplex_broker.specs.vfm import Weight

TuneHead: TypeAlias = Literal[FitHead, "generation"]  # one list: a union's errors would name its branches
Auto: TypeAlias = Literal["auto"]
_ID = re.compile(r"ftjob-[0-9a-f]{24}")
_CHECKPOINT_ID = re.compile(r"ftckpt-([0-9a-f]{24})([0-9a-f]{8})")


def _auto_or(kind: type[int] | type[float], least: float, most: float) -> PlainValidator:
    """Make the check of a number, or `auto`. As a union, pydantic's errors would name its branches."""
    words = f"must be 'auto' or a {'whole ' if kind is int else ''}number from {least:g} to {most:g}"

    def check(value: Any) -> Any:
        if value == "auto":
            return value
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not least <= value <= most:
            raise PydanticCustomError("auto_or", words)
        return kind(value)

    return PlainValidator(check)


class Hyperparameters(Spec):
    """OpenAI's: `n_epochs`; `batch_size` in examples; `learning_rate_multiplier` of the rate that fits what is trained. `auto`: a
    good default."""

    n_epochs: Annotated[int | Auto, _auto_or(int, 1, 10_000)] = "auto"
    batch_size: Annotated[int | Auto, _auto_or(int, 1, 4096)] = "auto"
    learning_rate_multiplier: Annotated[float | Auto, _auto_or(float, 1e-6, 1e6)] = "auto"


class TuneFit(Spec):
    """How to train, as far as OpenAI's API has no field for it; names as in `FitSpec` and in the heads' specs.

    `head`: None for the one of the vFM that is gone on with, else generation on a decoder and classification on an encoder.
    `learning_rate`: as it is, instead of a multiplier. `held_out`: share of the data for validation where there is no file for
    it. `input`, `system` and `chat_template` are of the new vFM.
    """

    head: TuneHead | None = None
    lora: LoraSpec | None = None
    ia3: Ia3Spec | None = None
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(default=(), max_length=8)
    pooling: Pooling | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    truncate: bool = False
    learning_rate: Factor | None = None
    held_out: float | None = Field(default=None, gt=0, lt=1)
    shuffle: bool = False
    patience: int | None = Field(default=None, ge=1)
    input: InputSpec = InputSpec()
    system: str = Field(default="", max_length=65_536)
    chat_template: str | None = Field(default=None, min_length=1, max_length=65_536)

    @model_validator(mode="after")
    def _one_adapter(self) -> TuneFit:
        if self.lora is not None and self.ia3 is not None:
            raise ValueError("lora and ia3: a vFM has one adapter; leave one of the two out")
        return self


class Base(Spec):
    """What training goes on from: a `version` of a vFM, or a `checkpoint` (an id) of the tuning job that made it."""

    vfm: Name
    version: str
    checkpoint: str | None = None


class Publish(Spec):
    """What becomes of the best checkpoint: a new vFM (`as`), the next version of one (`update`), a `canary` beside one, or
    `none`: nothing. `vfm`: its name; `generation`: the one that it must still have, so that nobody's change is lost."""

    how: Literal["as", "update", "canary", "none"]
    vfm: Name | None = None
    generation: int | None = None

    @model_validator(mode="after")
    def _names_a_vfm(self) -> Publish:
        if (self.vfm is None) != (self.how == "none"):
            raise ValueError("give the name of the vFM, unless it is none")
        return self


class TuneSpec(Spec):
    """What was ordered, which never changes. `owner`: the name of the key that ordered it; `model`: what it asked for, a backbone
    or a vFM; `base`: what training goes on from, None: the backbone as it is; `weight`: its part of the device, against other
    tuning jobs."""

    id: str = Field(pattern=rf"^{_ID.pattern}$")
    owner: str
    backbone: Name
    model: str
    base: Base | None = None
    training_file: FileId
    validation_file: FileId | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    fit: TuneFit = TuneFit()
    suffix: Annotated[str, StringConstraints(max_length=64)] | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    metadata: Metadata | None = None
    weight: Weight = 1.0
    publish: Publish

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it reads, which do not expire until it has ended."""
        return (self.training_file, *(() if self.validation_file is None else (self.validation_file,)))


class TunePlace(Spec):
    """Where a training gives the same result, bit for bit: `hosted`: fingerprint of the weights and dtype; the kind of device;
    how many threads it computes with. What was begun at one place goes on at such a place only."""

    hosted: str
    device: Literal["cpu", "cuda"]
    threads: int = Field(ge=1)

    @property
    def fingerprint(self) -> str:
        """The place as one word."""
        return f"{self.hosted}/{self.device}/{self.threads}"


def new_tune_id() -> str:
    """Make the id of a new tuning job. Ids sort by the time when they were made."""
    return f"{_prefix(time.time())}{secrets.token_hex(6)}"


def is_tune_id(text: str) -> bool:
    """Tell whether a text could be the id of a tuning job."""
    return _ID.fullmatch(text) is not None


def oldest_tune_id(made_at: float) -> str:
    """Return what comes before every id that was made then or later, and after all others (seconds since 1970)."""
    return _prefix(made_at)


def checkpoint_id(job: str, step: int) -> str:
    """Return the id of the checkpoint that a tuning job has made after a step."""
    return f"ftckpt-{job.removeprefix('ftjob-')}{step:08x}"


def split_checkpoint_id(text: str) -> tuple[str, int] | None:
    """Return the tuning job and the step of a checkpoint's id; None for what is no such id."""
    found = _CHECKPOINT_ID.fullmatch(text)
    return (f"ftjob-{found[1]}", int(found[2], 16)) if found else None


def _prefix(seconds: float) -> str:
    return f"ftjob-{int(seconds * 1000):012x}"
