"""The bodies of requests for tuning jobs, in OpenAI's shape; `fit`, `publish` and `weight` are ours."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.batches import Metadata
from fmplex_broker.specs.schema import Name
from fmplex_broker.specs.tuning import Hyperparameters, Publish, TuneFit
from fmplex_broker.specs.vfm import Weight
from fmplex_gateway.schemas import Body


def _supervised_only(value: Any) -> Any:
    if value != "supervised":
        raise PydanticCustomError(
            "method",
            "supervised only: this trains on examples with their answers; there is no dpo and no reinforcement",
        )
    return value


def _head_that_trains(value: Any) -> Any:
    if isinstance(value, dict) and value.get("head") == "features":
        raise InvalidInput(
            "fit.head: a features head cannot be trained: it has neither weights nor answers; give the head of your task",
            field="fit.head",
        )
    return value


def _no_integrations(value: Any) -> Any:
    if value:
        raise PydanticCustomError("integrations", "there are none; events and result files have all figures")
    return None


class Supervised(Body):
    """How to train on examples with their answers."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(Body):
    """The method of a tuning job."""

    type: Annotated[str, BeforeValidator(_supervised_only)] = "supervised"
    supervised: Supervised | None = None


class TuneBody(Body):
    """The body that orders a tuning job. `model`: a backbone, or a vFM to go on from: `NAME`, `NAME@VERSION` or
    `NAME@CHECKPOINT`."""

    model: str = Field(min_length=1, max_length=512)
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: Name | None = Field(default=None, max_length=64)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    metadata: Metadata | None = None
    integrations: Annotated[None, BeforeValidator(_no_integrations)] = None
    fit: Annotated[TuneFit, BeforeValidator(_head_that_trains)] = TuneFit()
    publish: Publish | None = None
    weight: Weight = 1.0

    @property
    def wanted(self) -> Hyperparameters:
        """The hyperparameters, wherever they are given."""
        if self.method is not None and self.method.supervised is not None:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or Hyperparameters()
