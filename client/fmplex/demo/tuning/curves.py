"""From what was seen to two curves over one time axis. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fmplex.demo.traffic import quantile
from fmplex.demo.tuning.watching import Answer, Deployed, Seen

_WINDOW_S = 5.0  # of latencies, for a point of their curve


class Phase(NamedTuple):
    """A part of the time, `begin` to `end` seconds: before, during or after the training."""

    name: str
    begin: float
    end: float

    def of(self, answers: Sequence[Answer], vfm: str | None = None) -> list[float]:
        """Return the milliseconds of the requests that were sent in it, of all vFMs or of one."""
        return [a.ms for a in answers if self.begin <= a.at < self.end and vfm in (None, a.vfm)]


@dataclass(frozen=True, slots=True)
class Curves:
    """What is drawn. `scores`: (second, held-out score of what served); `p50`, `p99`: (second, ms) of the neighbours;
    `training`: when it went on; `deployed`: versions as they began to serve; `target_ms`: of the neighbours."""

    vfm: str
    metric: str
    seconds: float
    scores: list[tuple[float, float]]
    deployed: list[Deployed]
    p50: list[tuple[float, float]]
    p99: list[tuple[float, float]]
    target_ms: float
    training: Phase

    @property
    def title(self) -> str:
        """The heading of both drawings."""
        return f"{self.vfm} is trained beside its neighbours, on the device that serves them"


def phases(seen: Seen) -> tuple[Phase, Phase, Phase]:
    """Return the time before, during and after the training."""
    end = max([seen.ended, *(answer.at for answer in seen.answers)]) + 1e-6
    return Phase("before", 0.0, seen.begun), Phase("during", seen.begun, seen.ended), Phase("after", seen.ended, end)


def make_curves(seen: Seen, vfm: str, metric: str) -> Curves:
    """Make the curves of what was seen of the vFM that learns."""
    _, training, after = phases(seen)
    windows = _windows(seen.answers, after.end)
    return Curves(
        vfm=vfm,
        metric=metric,
        seconds=after.end,
        scores=[(one.at, one.value) for one in seen.scores],
        deployed=list(seen.deployed),
        p50=[(at, quantile(ms, 0.5)) for at, ms in windows],
        p99=[(at, quantile(ms, 0.99)) for at, ms in windows],
        target_ms=seen.load.target_ms,
        training=training,
    )


def _windows(answers: Sequence[Answer], end: float) -> list[tuple[float, list[float]]]:
    """Return, for each second, the milliseconds of what was sent in the five before it."""
    found = []
    for at in range(1, int(end) + 1):
        ms = [a.ms for a in answers if at - _WINDOW_S <= a.at < at]
        if ms:
            found.append((float(at), ms))
    return found
