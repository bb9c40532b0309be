"""Who is trained, who lives beside it, and how much is asked meanwhile."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from fmplex.demo.tasks import BACKBONE, TASKS, DemoTask
from fmplex_broker.specs.fitting import FitSpec

_BY_NAME = {task.name: task for task in TASKS}
LEARNER = _BY_NAME["entities"]  # of all tasks the one in which an adapter gains most over a head alone
NEIGHBOURS = tuple(_BY_NAME[name] for name in ("toxicity", "topic", "intent"))
TARGET_MS = 250.0  # of the neighbours
SPEND = 0.2  # of it, at most, for training


@dataclass(frozen=True, slots=True)
class Recipe:
    """`epochs` of training, at `rate` times the usual learning rate, so that one can watch; `most_s`: it is cut short after so
    many seconds. `requests`: a second, to all neighbours together."""

    epochs: int
    rate: float
    most_s: float
    requests: float


FULL = Recipe(epochs=14, rate=0.3, most_s=80.0, requests=30.0)
QUICK = Recipe(epochs=3, rate=1.0, most_s=60.0, requests=10.0)


def first_fits(model: str, packages: Path) -> list[FitSpec]:
    """Return what is trained before: heads alone, on the frozen backbone; also the learner's first version."""
    return [replace(task, lora=0, epochs=30).fit_spec(model, packages) for task in (*NEIGHBOURS, LEARNER)]


def as_deployed(task: DemoTask) -> dict[str, object]:
    """Return what is promised to a vFM."""
    return {"weight": 1.0, "slo": {"latency_ms": TARGET_MS}} if task in NEIGHBOURS else {"weight": 1.0}


def fleet_file(model: str) -> str:
    """Return a fleet of one worker that tunes."""
    return (
        f'broker = "embedded"\n[backbone]\nname = "{BACKBONE}"\nmodel = {json.dumps(model)}\nmax_tokens = 256\n'
        f"[worker.tuning]\nenabled = true\nspend = {SPEND}\n"
    )
