"""A tuning job as a gateway shows it, its checkpoints, and what it says."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fmplex_broker.specs.schema import Spec
from fmplex_broker.specs.tune_records import ENDS, TuneError, TuneProgress


class TuneInfo(Spec):
    """A tuning job as `GET /v1/fine_tuning/jobs/{id}` shows it.

    `id`; `status`: validating_files, queued, running, paused, and at its end succeeded, failed or cancelled; `model`: what was
    trained, a backbone or a vFM; `backbone`; `fine_tuned_model`: the vFM that came of it, and its `version`, None until then;
    `progress`: step, loss, validation, tokens a second, share of the device; `examples` in its training file; `error`: why it
    failed; `hyperparameters`, `fit`, `publish`, `seed`, `suffix`, `weight`, `metadata`: as they were ordered; `trained_tokens`:
    at its end; `deaths`: workers that have died of it. Files: `training_file`, `validation_file`, `result_files` (its figures as
    CSV). Times in seconds since 1970: `created_at`, `finished_at`, `estimated_finish`.
    """

    id: str
    status: str
    model: str
    backbone: str = ""
    created_at: int
    training_file: str
    validation_file: str | None = None
    fine_tuned_model: str | None = None
    version: str | None = None
    progress: TuneProgress = TuneProgress()
    examples: int | None = None
    error: TuneError | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    fit: dict[str, Any] = Field(default_factory=dict)
    publish: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    suffix: str | None = None
    weight: float = 1.0
    metadata: dict[str, str] | None = None
    trained_tokens: int | None = None
    deaths: int = 0
    result_files: tuple[str, ...] = ()
    finished_at: int | None = None
    estimated_finish: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.status in ENDS

    @property
    def makes(self) -> str:
        """The vFM that came of it, or is to; empty if none is."""
        return self.fine_tuned_model or str(self.publish.get("vfm", ""))

    def plain(self) -> dict[str, Any]:
        """Return the tuning job in plain values, as it travels."""
        return self.model_dump(mode="json")


class TuneEventInfo(Spec):
    """Something that a tuning job said: `message`, how grave (`level`: info, warn, error), and, of `type` metrics, numbers in
    `data`. `id`; `created_at`: seconds since 1970."""

    id: str
    created_at: int
    level: str
    message: str
    type: str = "message"
    data: dict[str, Any] = Field(default_factory=dict)


class TuneCheckpointInfo(Spec):
    """What a training was after step `step_number`. `id`: by which it is deployed or gone on from; `best`: no earlier one was
    better; `metrics`: its losses; `fine_tuned_model_checkpoint`: its name as a model; `created_at`: seconds since 1970."""

    id: str
    created_at: int
    step_number: int
    best: bool = False
    metrics: dict[str, float] = Field(default_factory=dict)
    fine_tuned_model_checkpoint: str = ""
