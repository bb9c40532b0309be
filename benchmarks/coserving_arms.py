"""Ways to train beside inference, on a simulated device: the worker's real device task and scheduler, made-up time.

`inference` and `training`: only one of both. `static_25`: training has a quarter of the device for itself, inference the rest,
whose passes take as much longer. `every_4`: a whole step after every four passes, and units while nothing is in hand. `idle`:
units only then. `spend_80`, `spend_50`: ours, with so much of the slack.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np

from benchmarks import virtual_time
from benchmarks.simulated_parts import ENCODER, FakeRun, Shape, Text
from benchmarks.simulated_worker import World
from benchmarks.virtual_time import Clock
from fmplex_broker.specs.vfm import Targets
from fmplex_broker.wire.messages import INTERACTIVE, Flow
from fmplex_worker.host.training_turn import TrainingTurn
from fmplex_worker.scheduling import PassBudget

_VFM = "served"
_FEASIBLE = 0.99  # of all requests, and of all first tokens, in time: then a rate is feasible
_BISECTIONS = 7
_LEAD_S = 2.0  # of training alone, until it is known how long units take


class Arm(NamedTuple):
    """A way to train. `spend`: ours; `every`: after so many passes, 0: only when nothing is in hand; `static`: training's part of
    the device."""

    spend: float | None = None
    every: int | None = None
    static: float = 0.0


ARMS = {
    "inference": Arm(),
    "spend_80": Arm(spend=0.8),
    "spend_50": Arm(spend=0.5),
    "idle": Arm(every=0),
    "every_1": Arm(every=1),
    "every_4": Arm(every=4),
    "every_16": Arm(every=16),
    "static_25": Arm(static=0.25),
    "static_50": Arm(static=0.5),
    "static_75": Arm(static=0.75),
}
RIVALS = tuple(name for name, arm in ARMS.items() if arm.every is not None or arm.static)


class Simulated(NamedTuple):
    """A kind of requests. `most`: a rate (a second) that is certainly more than the device can do."""

    shape: Shape
    targets: Targets
    most: float
    text: Callable[[random.Random], Text] | None = None


def _text(rng: random.Random) -> Text:
    return Text(rng.randint(100, 300), rng.randint(20, 80), chunk=16)


# As of a model of about 8 B parameters on an accelerator that reads its weights in 12 ms and takes in 10,000 tokens of prompts a
# second; a full pass takes 38 ms.
KINDS = {
    "encoder": Simulated(ENCODER, Targets(latency_ms=250), 120.0),
    "generation": Simulated(Shape(0.012, 0.0001, 256), Targets(ttft_ms=1000, inter_token_ms=75), 40.0, _text),
}


class Seen(NamedTuple):
    """What came of an arm. `share`: training's part of the device's seconds; `attained`: the part of all requests, or of all gaps
    between tokens, that was in time; `firsts`: of all first tokens; `by_mean`: of all texts, by their mean seconds a token, as
    FlexLLM counts; `p50_s`, `p99_s`: latency, or time to the first token; `late`: requests that our own books call late because
    of training."""

    share: float
    attained: float
    firsts: float
    by_mean: float
    p50_s: float
    p99_s: float
    late: int = 0


class RivalTurn:
    """In place of `TrainingTurn`: a training whose turn comes by counting passes, whatever they are for."""

    wanted = lets_ride = True

    def __init__(self, world: World, run: FakeRun, every: int) -> None:
        self._world, self._run, self._every = world, run, every
        self._passes = 0
        self._stopping = self._within = False

    def may(self, in_s: float = 0.0) -> bool:
        """Tell whether a unit may run next."""
        return not self._stopping and (not len(self._world.table) or self._due)

    @property
    def _due(self) -> bool:
        return self._every > 0 and self._passes >= self._every

    async def run(self) -> None:
        """Run a unit; or, if that is due, the rest of a step."""
        await self._world.device.lend(self._units(self._due))

    def _units(self, step: bool) -> Iterator[str]:
        while (unit := self._run.next()) is not None:
            unit.run()
            yield unit.kind
            if unit.kind == "step":
                self._passes = 0
            if not step or unit.kind == "step":
                return

    def landed(self, plan: object, outcome: object) -> None:
        """Count a pass."""
        self._passes += 1

    def stop(self) -> None:
        """Train no more."""
        self._stopping = True

    async def rest(self) -> None:
        """Wait until somebody comes."""
        self._world.table.arrived.clear()
        await self._world.table.arrived.wait()


def serve(kind: str, arm: Arm, rate: float, seconds: float, seed: int = 0) -> Seen:
    """Let requests come at random, `rate` a second, while a training wants all that it can get. All are waited for."""
    what = KINDS[kind]

    async def main(clock: Clock) -> Seen:
        shape = what.shape.slower(1 - arm.static) if arm.static else what.shape
        world = World(clock, arm.spend, shape=shape)
        _aim(world, what.targets)
        job, run = world.training()
        if arm.every is not None:
            world.lend_by(cast(TrainingTurn, RivalTurn(world, run, arm.every)))
        async with world:
            if world.turn:
                await world.turn.add(job)
            await asyncio.sleep(_LEAD_S)
            before = sum(world.charged().values())
            await (_arrive(world, what, rate, seconds, seed) if rate else asyncio.sleep(seconds))
            share = arm.static or (sum(world.charged().values()) - before) / (clock() - _LEAD_S)
        return _seen(world, what, share)

    return virtual_time.run(main)


def _aim(world: World, targets: Targets) -> None:
    """Keep passes as short as the targets want them, as a worker does."""
    budget = PassBudget(world.cost, world.shape.units)
    budget.record_target(_VFM, targets.pass_ms / 1000, 0.0)
    world.scheduler.budget = world.table.room.pass_units = budget.units(0.0)


async def _arrive(world: World, what: Simulated, rate: float, seconds: float, seed: int) -> None:
    rng = random.Random(seed + 1)

    def come() -> None:
        world.come(_VFM, targets=what.targets, text=what.text(rng) if what.text else None)

    await world.arrivals(_VFM, rate, seconds, seed=seed, come=come)


def _seen(world: World, what: Simulated, share: float) -> Seen:
    late = world.books.stats.late if world.turn else 0
    out = world.outbox
    if what.text is None:
        took = out.latencies.get(Flow(_VFM, INTERACTIVE), [])
        attained = _within(took, what.targets.latency_ms)
        return Seen(share, attained, attained, attained, _percentile(took, 50), _percentile(took, 99), late)
    target = what.targets.inter_token_ms
    return Seen(
        share, _within(out.gaps, target), _within(out.firsts, what.targets.ttft_ms), _within(out.means, target),
        _percentile(out.firsts, 50), _percentile(out.firsts, 99), late,
    )  # fmt: skip


def _within(seconds: Sequence[float], target_ms: float) -> float:
    return sum(took <= target_ms / 1000 for took in seconds) / len(seconds) if seconds else 1.0


def _percentile(seconds: Sequence[float], q: float) -> float:
    return float(np.percentile(seconds, q)) if seconds else 0.0


def feasible_rate(kind: str, seconds: float) -> float:
    """Find the highest rate (a second) at which requests without any training are in time."""
    low, high = 0.0, KINDS[kind].most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        seen = serve(kind, ARMS["inference"], middle, seconds)
        low, high = (middle, high) if min(seen.attained, seen.firsts) >= _FEASIBLE else (low, middle)
    return low


def measure(kind: str, loads: Sequence[int], seconds: float) -> dict[str, Seen]:
    """Return what comes of training alone, and of every way at every load (in % of the feasible rate): `"spend_80_at_20"`."""
    rate = feasible_rate(kind, seconds)
    found = {"training": serve(kind, ARMS["spend_80"], 0.0, seconds)}
    for load in loads:
        for name, arm in ARMS.items():
            found[f"{name}_at_{load}"] = serve(kind, arm, rate * load / 100, seconds)
    return found


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(measure(*json.loads(line))), flush=True)
