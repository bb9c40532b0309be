"""The demo from end to end: fit heads, serve, train one of the vFMs further beside the others' traffic, report, draw."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console

from fmplex.aio import AsyncClient
from fmplex.demo.tasks import MODEL, as_input, load_examples
from fmplex.demo.tuning.curves import Curves, make_curves
from fmplex.demo.tuning.improving import improve
from fmplex.demo.tuning.recipe import (
    FULL,
    LEARNER,
    NEIGHBOURS,
    QUICK,
    Recipe,
    first_fits,
    fleet_file,
)
from fmplex.demo.tuning.report import METRIC, TuningReport
from fmplex.demo.tuning.watching import Seen, ask_neighbours, gauge, keep_scoring
from fmplex.fitting import fit_all
from fmplex.local import LocalFleet
from fmplex_broker.errors import FmplexError
from fmplex_broker.specs.fitting import FitDone, FitFailed
from fmplex_broker.specs.fleet import locate_model

_TRAINERS = 2  # of one thread each
_GAUGE_S = 4.0


def run_demo(
    out: Console, report_file: Path | None, seconds: float, *, quick: bool = False
) -> tuple[int, Curves | None]:
    """Run the demo: print its tables on `out`, write its figures to `report_file`, watch for so many seconds before and after
    the training; `quick`: train so little that nobody gets better. Returns the exit code, 0 if everything worked and the vFM is
    clearly better than before, and the curves, if there are any."""
    report, start = TuningReport(), time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="fmplex-demo-") as folder:
            _demo(out, Path(folder), report, seconds, QUICK if quick else FULL)
    except* FmplexError as errors:
        for e in errors.exceptions:
            assert isinstance(e, FmplexError)
            report.failures.append(f"{e.code}: {e}")
    else:
        report.check(better=not quick)
    report.total_seconds = time.monotonic() - start
    report.show(out)
    if report_file is not None:
        report_file.write_text(json.dumps(report.to_json(), indent=2))
    seen = report.seen
    curves = make_curves(seen, LEARNER.name, METRIC) if seen.ended and seen.answers else None
    return (1 if report.failures else 0), curves


def _demo(out: Console, folder: Path, report: TuningReport, seconds: float, recipe: Recipe) -> None:
    model = locate_model(MODEL, folder)
    packages = folder / "vfms"
    start = time.monotonic()
    with out.status("fitting heads on the frozen backbone"):
        for event in fit_all(first_fits(model, packages), processes=min(os.cpu_count() or 1, _TRAINERS)):
            if isinstance(event, FitFailed):
                report.failures.append(f"{event.name}: {event.message}")
            elif isinstance(event, FitDone):
                out.print(f"fitted a head: {event.name:10} held-out {event.metric} {event.score:.3f}", highlight=False)
    report.fit_seconds = time.monotonic() - start
    config = folder / "fleet.toml"
    config.write_text(fleet_file(model))
    fleet = LocalFleet(config, port=0, data=folder / "fleet")
    with out.status("starting a fleet"):
        fleet.start()
    try:
        out.print(f"one worker that serves and trains, gateway {fleet.gateway_url}")
        asyncio.run(_watch(out, fleet.gateway_url, packages, report, seconds, recipe))
    finally:
        fleet.stop()


async def _watch(out: Console, url: str, packages: Path, report: TuningReport, seconds: float, recipe: Recipe) -> None:
    async with AsyncClient(url) as client:
        for task in (*NEIGHBOURS, LEARNER):
            await client.vfms.deploy(packages / task.name)
        examples = load_examples(LEARNER)
        inputs = {task.name: [as_input(row) for row in load_examples(task).held_out] for task in NEIGHBOURS}
        with out.status("finding out how much to ask"):
            load = await gauge(client, inputs, min(seconds, _GAUGE_S))
        for task in (*NEIGHBOURS, LEARNER):  # who has none could only be trained beside, a unit at a time
            await client.vfms.update(task.name, slo={"latency_ms": load.target_ms})
        out.print(
            f"{load.requests:.0f} requests a second to three neighbours, each due within {load.target_ms:.0f} ms",
            highlight=False,
        )
        stop, report.seen = asyncio.Event(), Seen(load)
        async with asyncio.TaskGroup() as group:
            group.create_task(ask_neighbours(client, inputs, report.seen, stop))
            group.create_task(keep_scoring(client, LEARNER, examples, report.seen, stop))
            try:
                await _course(out, client, report, seconds, recipe)
            finally:
                stop.set()


async def _course(out: Console, client: AsyncClient, report: TuningReport, seconds: float, recipe: Recipe) -> None:
    """Watch what is before, during and after the training."""
    seen = report.seen
    with out.status("traffic without training") as status:
        await _seen_once(seen, seconds)
        report.job = await improve(client, recipe, seen, lambda words: status.update(f"training beside it, {words}"))
        status.update("traffic without training")
        await _seen_once(seen, seconds, seen.deployed[-1].version if seen.deployed else "")


async def _seen_once(seen: Seen, seconds: float, version: str | None = None) -> None:
    """Wait so many seconds, and until whatever serves has been scored once: `version`, if it is said."""
    end = seen.now + seconds
    while seen.now < end or not any(version in (None, "", one.version) for one in seen.scores):
        if seen.failures:
            return
        await asyncio.sleep(0.1)
