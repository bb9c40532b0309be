"""The record of a tuning job: its state, how far it is, its checkpoints and events. Pure.

```
validating_files ──> queued <──> running ──> succeeded
       │               ^            │
       │               │            v
       │               └────────> paused
       v
     failed
```

It may go to `cancelled` from every state that is no end, and to `failed` from those above it. What a caller asks for changes
the state at once; a worker that has the job in hand is told so by its next save, and gives it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from pydantic import Field

from fmplex_broker.specs.files import FileId
from fmplex_broker.specs.schema import Spec
from fmplex_broker.specs.tuning import TuneSpec, checkpoint_id

TuneStatus: TypeAlias = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
TuneEnd: TypeAlias = Literal["succeeded", "failed", "cancelled"]
STATUSES: tuple[TuneStatus, ...] = get_args(TuneStatus)
ENDS: tuple[TuneEnd, ...] = get_args(TuneEnd)
Wish: TypeAlias = Literal["pause", "resume", "cancel"]
Level: TypeAlias = Literal["info", "warn", "error"]
KEPT_LAST = 2  # checkpoints, beside the best one
_JSON = ("progress", "checkpoints", "error", "result_files")
_TEXTS = ("status", "fingerprint", "vfm", "version", "worker")


class TuneError(Spec):
    """Why a tuning job failed: its `code` and `message`; `param`: which part of what was ordered is at fault."""

    code: str
    message: str
    param: str | None = None


class TuneProgress(Spec):
    """How far a training is. `step` of `steps`; `epoch`: begun, as a fraction; `loss`: of the last step; `validation`: loss, or
    whatever score, on the data kept for that; `tokens`: learnt from so far, each step once; `best_step`: of the best validation.
    Beside them what it gets now: `tokens_s`, `share` of the device; `finish_at`: when it will end, in seconds since 1970."""

    step: int = Field(default=0, ge=0)
    steps: int = Field(default=0, ge=0)
    epoch: float = 0.0
    loss: float | None = None
    validation: float | None = None
    tokens: int = Field(default=0, ge=0)
    best_step: int | None = None
    tokens_s: float | None = None
    share: float | None = None
    finish_at: int | None = None

    @property
    def at_rest(self) -> TuneProgress:
        """Return it as it is while nobody trains: it gets nothing now, and will not end by itself."""
        return self.model_copy(update={"tokens_s": None, "share": None, "finish_at": None})


class Checkpoint(Spec):
    """What a training was after a step. `name`: of its files in the store; `best`: no earlier one was better; `created_at`:
    seconds since 1970; `bytes`: of all its files."""

    step: int = Field(ge=0)
    name: str
    created_at: int
    best: bool = False
    loss: float | None = None
    validation: float | None = None
    tokens: int = 0
    bytes: int = 0

    def shown(self, job: str, vfm: str | None = None) -> dict[str, Any]:
        """Return it in OpenAI's shape; `vfm`: what its tuning job makes."""
        one = checkpoint_id(job, self.step)
        metrics = {"step": self.step, "train_loss": self.loss, "full_valid_loss": self.validation}
        return {
            "object": "fine_tuning.job.checkpoint",
            "id": one,
            "created_at": self.created_at,
            "fine_tuned_model_checkpoint": f"{vfm}@{one}" if vfm else one,
            "fine_tuning_job_id": job,
            "metrics": {name: value for name, value in metrics.items() if value is not None},
            "step_number": self.step,
            "best": self.best,
        }


def kept(checkpoints: Sequence[Checkpoint]) -> tuple[Checkpoint, ...]:
    """Return those of the checkpoints that are kept, in order of their steps: the best and the last two. Of one step the later
    in the list counts."""
    by_step = [found for _, found in sorted({one.step: one for one in checkpoints}.items())]
    last = by_step[-KEPT_LAST:]
    best = [one for one in by_step if one.best][-1:]
    return tuple([one for one in best if one not in last] + last)


class TuneEvent(Spec):
    """Something that a tuning job says. `kind`: `metrics` has numbers in `data`; `created_at`: seconds since 1970."""

    id: str
    created_at: int
    level: Level
    message: str
    kind: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = Field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """Return it in OpenAI's shape."""
        return {
            "object": "fine_tuning.job.event",
            "type": self.kind,
            **self.model_dump(include={"id", "created_at", "level", "message", "data"}),
        }


class TuneRecord(Spec):
    """A tuning job as it is. Times are seconds since 1970. `worker`: who has it in hand; `fingerprint`: of the place where it was
    begun; `examples`: in its training file; `attempts`: how often a worker has ended with it in hand since its last new
    checkpoint; `deaths`: how often one has died of it; `checks`: how often its files were looked through; `vfm`, `version`: what
    was published."""

    spec: TuneSpec
    status: TuneStatus
    created_at: int
    queued_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    examples: int | None = None
    worker: str | None = None
    fingerprint: str | None = None
    attempts: int = 0
    deaths: int = 0
    checks: int = 0
    progress: TuneProgress = TuneProgress()
    checkpoints: tuple[Checkpoint, ...] = ()
    error: TuneError | None = None
    vfm: str | None = None
    version: str | None = None
    result_files: tuple[FileId, ...] = ()

    @classmethod
    def parse(cls, fields: Mapping[str, bytes | None]) -> TuneRecord:
        """Read a tuning job from its fields in the broker; those that are not there have not come to be."""
        values: dict[str, Any] = {}
        for name, raw in fields.items():
            if not raw:
                continue
            if name == "spec":
                values[name] = TuneSpec.model_validate_json(raw)
            elif name in _JSON:
                values[name] = json.loads(raw)
            else:
                values[name] = raw.decode() if name in _TEXTS else int(raw)
        return cls.model_validate(values)

    @property
    def ended(self) -> bool:
        """True if nothing more will come of it."""
        return self.status in ENDS

    @property
    def last(self) -> Checkpoint | None:
        """The checkpoint from which it goes on."""
        return self.checkpoints[-1] if self.checkpoints else None

    def shown(self) -> dict[str, Any]:
        """Return it in OpenAI's shape, and beside that how far it is."""
        spec = self.spec
        given = spec.hyperparameters.model_dump()
        shown = self.model_dump(include={"status", "created_at", "finished_at", "examples"})
        progress = self.progress if self.status == "running" else self.progress.at_rest
        return {
            "object": "fine_tuning.job",
            **shown,
            "progress": progress.model_dump(),
            "id": spec.id,
            "model": spec.model,
            "fine_tuned_model": self.vfm,
            "organization_id": "",
            "error": self.error.model_dump() if self.error else None,
            "hyperparameters": given,
            "method": {"type": "supervised", "supervised": {"hyperparameters": given}},
            "trained_tokens": self.progress.tokens if self.ended else None,
            "estimated_finish": progress.finish_at,
            "integrations": [],
            **spec.model_dump(include={"training_file", "validation_file", "seed", "metadata", "weight", "suffix"}),
            "result_files": list(self.result_files),
            "backbone": spec.backbone,
            "fit": spec.fit.model_dump(mode="json", exclude_defaults=True),
            "publish": spec.publish.model_dump(exclude_none=True),
            "version": self.version,
            "deaths": self.deaths,
        }


FIELDS = tuple(TuneRecord.model_fields)  # of its hash
