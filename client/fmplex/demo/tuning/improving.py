"""The tuning job of the demo: its checkpoints become versions while it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fmplex.aio import AsyncClient
from fmplex.demo.tasks import data_file
from fmplex.demo.tuning.recipe import LEARNER, Recipe
from fmplex.demo.tuning.watching import Deployed, Seen
from fmplex.tunes.aio import AsyncTune
from fmplex.tunes.core import now_of
from fmplex.tunes.records import TuneCheckpointInfo, TuneInfo
from fmplex_broker.errors import JobFailed

_LOOK_S = 0.5


async def improve(client: AsyncClient, recipe: Recipe, seen: Seen, tell: Callable[[str], None]) -> TuneInfo:
    """Train the learner further, let each checkpoint serve as it comes, in the end the best one; return the job as it is then.
    `tell` is told how it does. Raises `JobFailed`."""
    seen.begun = seen.now
    job = await client.tune(
        data_file(LEARNER.name), model=LEARNER.name, lora={"r": LEARNER.lora}, epochs=recipe.epochs,
        learning_rate_multiplier=recipe.rate, patience=recipe.epochs, publish={"how": "none"},
    )  # fmt: skip
    while not (info := await job.refresh()).ended:
        tell(f"{info.status}: step {info.progress.step} of {info.progress.steps}  {now_of(info)}")
        if _is_scored(seen) and (kept := await job.checkpoints()):
            await _serve(client, kept[0], seen)
        if seen.now - seen.begun > recipe.most_s:
            await job.cancel()  # at once; what was learnt is kept
        await asyncio.sleep(_LOOK_S)
    seen.ended = seen.now
    if info.status == "failed":
        raise JobFailed(f"{job.id} failed: {info.error.message if info.error else 'its events say why'}")
    await _serve_best(client, job, seen)
    return info


def _is_scored(seen: Seen) -> bool:
    """Tell whether the last version has its point in the curve."""
    return not seen.deployed or seen.deployed[-1].version in {one.version for one in seen.scores}


async def _serve_best(client: AsyncClient, job: AsyncTune, seen: Seen) -> None:
    kept = await job.checkpoints()
    if kept:
        await _serve(client, next((one for one in kept if one.best), kept[0]), seen)


async def _serve(client: AsyncClient, checkpoint: TuneCheckpointInfo, seen: Seen) -> None:
    """Let a checkpoint serve as the learner's next version, unless it does."""
    if seen.deployed and seen.deployed[-1].step == checkpoint.step_number:
        return
    vfm = await client.tunes.deploy(checkpoint.id, LEARNER.name, update=True)
    seen.deployed.append(Deployed(seen.now, vfm.version or "", checkpoint.step_number))
