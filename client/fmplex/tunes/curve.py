"""The loss curve of a tuning job: losses and scores by step, as its metrics events tell them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fmplex.tunes.records import TuneCheckpointInfo, TuneEventInfo, TuneInfo
from fmplex_broker.errors import InvalidInput

# What events call it, what the curve does.
LOSSES = (("train_loss", "training loss"), ("valid_loss", "validation loss"))
SCORES = (("valid_score", "validation score"),)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a curve: its name, and a value at each of some steps."""

    name: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True, slots=True)
class Curve:
    """The figures of a tuning job. `losses` and `scores` have axes of their own; `best`: the step of the best checkpoint."""

    title: str
    losses: list[Line]
    scores: list[Line]
    best: int | None


def make_curve(info: TuneInfo, events: Iterable[TuneEventInfo], checkpoints: Iterable[TuneCheckpointInfo]) -> Curve:
    """Make the curve of a job from all that it has said. Raises `InvalidInput` while it has told no loss."""
    figures = [event.data for event in events if event.type == "metrics"]
    losses, scores = _lines(figures, LOSSES), _lines(figures, SCORES)
    if not losses and not scores:
        then = "; its events say more" if info.ended else " yet; wait for its first steps"
        raise InvalidInput(f"{info.id} is {info.status} and has told no loss{then}", field="plot")
    best = [one.step_number for one in checkpoints if one.best]
    return Curve(f"{info.makes or info.model} ({info.id}, {info.status})", losses, scores, max(best, default=None))


def _lines(figures: list[dict[str, Any]], wanted: tuple[tuple[str, str], ...]) -> list[Line]:
    found = []
    for key, name in wanted:
        points = {data["step"]: data[key] for data in figures if _number(data.get("step")) and _number(data.get(key))}
        if points:
            steps = sorted(points)
            found.append(Line(name, steps, [float(points[step]) for step in steps]))
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
