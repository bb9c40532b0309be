"""What comes of a training that has ended: a version, and a file of its figures."""

from __future__ import annotations

import time
from typing import Any

from fmplex_broker.errors import FmplexError, Unavailable
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.files import LIFE_S, FileRecord, derived_file_id
from fmplex_broker.specs.tune_results import results_csv
from fmplex_broker.streams.tune_owner import HeldTune
from fmplex_worker.host.training_job import TrainingJob
from fmplex_worker.host.tune_desk import TuneDesk
from fmplex_worker.host.tune_publishing import published_as
from fmplex_worker.host.tune_shelf import package_of

_PAGE = 1_000  # events


class Ending:
    """The end of one training, which went on from `base`. Everything may be done again: the same comes of it."""

    def __init__(self, held: HeldTune, desk: TuneDesk, job: TrainingJob, base: Package | None) -> None:
        self._held = held
        self._desk = desk
        self._job = job
        self._base = base
        self._told = False

    async def publish(self) -> tuple[str, str] | None:
        """Make the best state what the vFM serves; return its name and version. None: it is not to be published, or cannot be,
        which is said: what was learnt stays in the checkpoints. Raises `Unavailable`: try again."""
        self._tell()
        publish, desk = self._held.record.spec.publish, self._desk
        if publish.how == "none":
            return None
        try:
            package = await desk.off_loop(self._best)
            await desk.off_loop(desk.shelf.artifacts.put, package)
            name, version = await desk.publisher.publish(publish, package)
        except Unavailable:
            raise
        except FmplexError as e:
            self._held.say(
                f"Not published: {e.message}. Its checkpoints are kept, and can be deployed by their ids", "warn"
            )
            return None
        self._held.say(f"{name} serves it as version {version}")
        return name, version

    async def results(self) -> tuple[str, ...]:
        """Write the figures that were said into a file of the owner's; return its id. Raises `Unavailable`."""
        desk, held, record = self._desk, self._held, self._held.record
        owner, after, more = record.spec.owner, "", True
        figures: list[dict[str, Any]] = []
        while more:
            page, more = await desk.tunes.events(held.id, owner, _PAGE, after, oldest_first=True)
            figures += [event.data for event in page if event.kind == "metrics"]
            after = page[-1].id if page else ""
        if not figures:
            return ()
        data, file = results_csv(figures), derived_file_id(record.created_at, f"{held.id}/results")
        await desk.off_loop(desk.shelf.write, file, data)
        await desk.files.add(
            FileRecord(
                id=file,
                owner=owner,
                bytes=len(data),
                created_at=record.created_at,
                expires_at=int(time.time()) + LIFE_S,
                filename=f"{held.id}_results.csv",
                purpose="fine-tune-results",
            )
        )
        return (file,)

    def _best(self) -> Package:
        publish = self._held.record.spec.publish
        return package_of(self._job.training.package(), published_as(publish, self._held.id), self._base)

    def _tell(self) -> None:
        """Say how good it is, once."""
        now = self._job.progress
        if self._told or now is None:
            return
        self._told = True
        if now.ended == "stopped early":
            self._held.say(
                f"Stopped early after step {now.step} of {now.steps}: it was best after step {now.best_step}"
            )
        if now.held_out is not None:
            metric, score, baseline = now.held_out
            figures = {"metric": metric, "held_out_score": score, "baseline": baseline}
            self._held.say(f"Held-out {metric} {score:.4g}; baseline {baseline:.4g}", data=figures)
