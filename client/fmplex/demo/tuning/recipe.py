"""Who is trained, who lives beside it, and how much is asked meanwhile."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from fmplex.demo.tasks import BACKBONE, TASKS
from fmplex_broker.specs.fitting import FitSpec

_BY_NAME = {task.name: task for task in TASKS}
LEARNER = _BY_NAME["entities"]  # of all tasks the one in which an adapter gains most over a head alone
NEIGHBOURS = tuple(_BY_NAME[name] for name in ("toxicity", "topic", "intent"))
SPEND = 0.3  # the part of the neighbours' target that training may use up


@dataclass(frozen=True, slots=True)
class Recipe:
    """`epochs` of training, at `rate` times the usual learning rate, so that one can watch; `most_s`: it is cut short after so
    many seconds."""

    epochs: int
    rate: float
    most_s: float


FULL = Recipe(epochs=20, rate=0.3, most_s=80.0)
QUICK = Recipe(epochs=1, rate=1.0, most_s=300.0)


def first_fits(model: str, packages: Path) -> list[FitSpec]:
    """Return what is trained before: heads alone, on the frozen backbone; also the learner's first version."""
    return [replace(task, lora=0, epochs=30).fit_spec(model, packages) for task in (*NEIGHBOURS, LEARNER)]


def fleet_file(model: str) -> str:
    """Return a fleet of one worker that tunes."""
    return (
        f'broker = "embedded"\n[backbone]\nname = "{BACKBONE}"\nmodel = {json.dumps(model)}\nmax_tokens = 256\n'
        f"[worker.tuning]\nenabled = true\nspend = {SPEND}\n"
    )
