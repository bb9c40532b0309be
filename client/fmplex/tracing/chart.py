"""The chart of a recording: a service curve and a bar in each pass for each vFM. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fmplex.tracing.recording import Recording
from fmplex_broker.errors import InvalidInput
from fmplex_broker.wire.passes import TRAINING, PassPart, PassRecord

COLOURED = 11  # vFMs that have a colour of their own
TRAINING_PLACE = ""  # in place of a vFM


class PassBar(NamedTuple):
    """The part that a series had in a pass, which began at second `start`: stacked from `bottom` on as high as its units."""

    record: PassRecord
    start: float
    bottom: int
    units: int
    jobs: int
    charged_s: float
    wait_ms: float


@dataclass(slots=True)
class Series:
    """The passes of one vFM, of all that have no colour of their own (`several`), or the units of training. `curve`: (second,
    device seconds charged until then ÷ weight), a step at the end of each pass; `share` of all device seconds. `weight`: the last
    one; of several vFMs the sum."""

    name: str
    weight: float
    several: bool = False
    training: bool = False
    charged_s: float = 0.0
    share: float = 0.0
    jobs: int = 0
    curve: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])
    bars: list[PassBar] = field(default_factory=list)

    def longest_waits(self, slices: int) -> list[tuple[float, float]]:
        """Return (second, ms) of the longest wait in each of so many slices of the time in which the series was served."""
        width = max(self.bars[-1].start / slices, 1e-9)
        longest: dict[int, tuple[float, float]] = {}
        for bar in self.bars:
            at = int(bar.start / width)
            longest[at] = max(longest.get(at, (0.0, -1.0)), (bar.start, bar.wait_ms), key=lambda point: point[1])
        return sorted(longest.values())

    @property
    def label(self) -> str:
        """The series in a legend."""
        if self.training:
            return f"{self.name}: {100 * self.share:.0f} % of the time"
        return f"{self.name}: {100 * self.share:.0f} % of the time, weight {self.weight:g}"


@dataclass(slots=True)
class WorkerTimeline:
    """The passes of one worker. `budget`: (second, units of a full pass) where it changes; `busy`: share of time in passes."""

    worker: str
    passes: int = 0
    busy: float = 0.0
    budget: list[tuple[float, int]] = field(default_factory=list)


@dataclass(slots=True)
class Chart:
    """All that is drawn. Seconds count from the begin of the recording. `series`: the one served most first, the others last."""

    backbones: list[str]
    seconds: float
    passes: int
    jobs: int
    series: list[Series]
    timelines: list[WorkerTimeline]

    @property
    def title(self) -> str:
        """The heading of the whole chart."""
        workers = "1 worker" if len(self.timelines) == 1 else f"{len(self.timelines)} workers"
        return (
            f"Who was served when: {self.jobs:,} jobs in {self.passes:,} passes of {', '.join(self.backbones)}, "
            f"{self.seconds:.1f} s, {workers}"
        )


def make_chart(recording: Recording) -> Chart:
    """Compute the chart of a recording. Raises `InvalidInput` when no pass was recorded."""
    passes = sorted(recording.passes, key=lambda p: p.start_ms + 1000 * p.seconds)
    if not passes:
        raise InvalidInput("the recording holds no pass: no job ran while it was made", field="file")
    begin_ms = min(recording.header.begin_ms, min(p.start_ms for p in passes))
    series, places = _series(passes)
    timelines = {name: WorkerTimeline(name) for name in sorted({p.worker for p in passes})}
    end = 0.0
    for record in passes:
        start = (record.start_ms - begin_ms) / 1000
        end = start + record.seconds
        _stack(record, start, series, places)
        timeline = timelines[record.worker]
        timeline.passes += record.cls != TRAINING
        timeline.busy += record.seconds
        if not timeline.budget or timeline.budget[-1][1] != record.budget:
            timeline.budget.append((start, record.budget))
    total = sum(p.seconds for p in passes)
    for one in series:
        one.share = one.charged_s / total if total else 0.0
        one.curve.append((end, one.curve[-1][1]))
    for timeline in timelines.values():
        timeline.busy = min(1.0, timeline.busy / end) if end else 0.0
    jobs = sum(one.jobs for one in series if not one.training)
    count = sum(timeline.passes for timeline in timelines.values())
    return Chart(sorted({p.backbone for p in passes}), end, count, jobs, series, list(timelines.values()))


def _series(passes: Sequence[PassRecord]) -> tuple[list[Series], dict[str, int]]:
    """Return the series, and for each vFM the position of its series."""
    charged: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = {}
    for part in (part for record in passes if record.cls != TRAINING for part in record.parts):
        charged[part.vfm] += part.charged_s
        weights[part.vfm] = part.weight
    ranked = sorted(charged, key=lambda vfm: (-charged[vfm], vfm))
    series = [Series(vfm, weights[vfm]) for vfm in ranked[:COLOURED]]
    if rest := ranked[COLOURED:]:
        series.append(Series(f"{len(rest)} others", sum(weights[vfm] for vfm in rest), several=True))
    places = {vfm: min(place, COLOURED) for place, vfm in enumerate(ranked)}
    if any(record.cls == TRAINING for record in passes):
        places[TRAINING_PLACE] = len(series)
        series.append(Series(TRAINING, 1.0, training=True))
    return series, places


def _stack(record: PassRecord, start: float, series: list[Series], places: dict[str, int]) -> None:
    """Add a pass to the series of those who were in it, the one served most at the bottom."""
    parts: dict[int, list[PassPart]] = defaultdict(list)
    for part in record.parts:
        parts[places[TRAINING_PLACE if record.cls == TRAINING else part.vfm]].append(part)
    bottom = 0
    for place, mine in sorted(parts.items()):
        one = series[place]
        jobs, units = sum(p.jobs for p in mine), sum(p.units for p in mine)
        charged_s, wait_ms = sum(p.charged_s for p in mine), max(p.wait_ms for p in mine)
        one.jobs += jobs
        one.charged_s += charged_s
        weight = one.weight if one.several or one.training else mine[0].weight  # it may have been changed meanwhile
        one.curve.append((start + record.seconds, one.curve[-1][1] + charged_s / weight))
        one.bars.append(PassBar(record, start, bottom, units, jobs, charged_s, wait_ms))
        bottom += units
