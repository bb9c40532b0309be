"""The demo from end to end: fit, serve, score, load, measure, report."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fmplex.aio import AsyncClient
from fmplex.demo.memory import memory_figures
from fmplex.demo.report import Report
from fmplex.demo.scoring import needs_train, score
from fmplex.demo.tasks import BACKBONE, MODEL, TASKS, Examples, as_input, load_examples
from fmplex.demo.traffic import measure_sharing, mixed
from fmplex.fitting import fit_all
from fmplex.local import LocalFleet
from fmplex_broker.errors import FmplexError
from fmplex_broker.specs.fitting import FitDone, FitEpoch, FitFailed, FitStarted
from fmplex_broker.specs.fleet import locate_model
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.fleet_view import FleetView
from fmplex_broker.wire.rates import fleet_rates
from fmplex_broker.wire.stats import WorkerStats

_CALLERS = 32
_TRAINERS = 4  # of one thread each
_ROUNDS = 15


def run_demo(out: Console, report_file: Path | None, seconds: float) -> int:
    """Run the demo: print its tables on `out`, write its figures to `report_file`, mix traffic for so many seconds.

    Returns the exit code: 0 if everything worked and every vFM is clearly better than guessing.
    """
    report, start = Report(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fmplex-demo-") as folder:
        try:
            _demo(out, Path(folder), report, seconds)
        except FmplexError as e:
            report.failures.append(f"{e.code}: {e}")  # what could not be measured need not be judged as well
        else:
            report.check(TASKS)
    report.total_seconds = time.monotonic() - start
    report.show(out, TASKS)
    if report_file is not None:
        report_file.write_text(json.dumps(report.to_json(TASKS), indent=2))
    return 1 if report.failures else 0


def _demo(out: Console, folder: Path, report: Report, seconds: float) -> None:
    model = locate_model(MODEL, folder)
    packages = folder / "vfms"
    start = time.monotonic()
    _fit(out, model, packages, report)
    report.fit_seconds = time.monotonic() - start
    config = folder / "fleet.toml"
    config.write_text(
        f'broker = "embedded"\n[backbone]\nname = "{BACKBONE}"\nmodel = {json.dumps(model)}\nmax_tokens = 256\n'
    )
    with LocalFleet(config, port=0, data=folder / "fleet") as fleet:
        out.print(f"one worker, one {BACKBONE} backbone, gateway {fleet.gateway_url}")
        asyncio.run(_serve(out, fleet, packages, report, seconds))


def _fit(out: Console, model: str, packages: Path, report: Report) -> None:
    columns = (TextColumn("{task.description:16}"), BarColumn(20), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=out, transient=True) as progress:
        bar = progress.add_task("loading", total=None, note="the backbone")
        specs = [task.fit_spec(model, packages) for task in TASKS]
        for event in fit_all(specs, processes=min(os.cpu_count() or 1, _TRAINERS)):
            if isinstance(event, FitStarted):
                note = f"{event.train} to train on, {event.held_out} held out"
                progress.reset(bar, description=event.name, note=note)
            elif isinstance(event, FitEpoch):
                progress.update(bar, total=event.epochs, completed=event.epoch, note=f"loss {event.loss:.3f}")
            elif isinstance(event, FitDone):
                scores = f"held-out {event.metric} {event.score:.3f}  baseline {event.baseline:.3f}"
                out.print(
                    f"fitted {event.name:14} {event.epochs:3} epochs {event.seconds:5.1f} s  {scores}", highlight=False
                )
            elif isinstance(event, FitFailed):
                report.failures.append(f"{event.name}: {event.message}")


async def _serve(out: Console, fleet: LocalFleet, packages: Path, report: Report, seconds: float) -> None:
    examples = {task.name: load_examples(task) for task in TASKS}
    inputs = {name: [as_input(row) for row in ex.held_out] for name, ex in examples.items()}
    redis = open_redis(fleet.broker_url)
    registry = Registry(redis, Scripts(redis))
    async with AsyncClient(fleet.gateway_url) as client:
        try:
            one = await _deploy(client, packages, lambda: read_fleet(redis, registry))
            report.memory = memory_figures(one, (await read_fleet(redis, registry)).workers[0], len(TASKS))
            await _score(client, examples, report)
            with out.status(f"mixed traffic over {len(TASKS)} vFMs for {seconds:.0f} s"):
                before = await read_fleet(redis, registry)
                report.traffic = await mixed(client, inputs, seconds, _CALLERS)
                await asyncio.sleep(1.1)  # workers report once a second
                seen = fleet_rates(before, await read_fleet(redis, registry))
            report.share = {row["vfm"]: row["share_received"] for row in seen["vfms"]}
            with out.status("the same bursts together, and one task at a time"):
                report.sharing = await measure_sharing(client, inputs, _ROUNDS)
        finally:
            await redis.aclose()


async def _deploy(client: AsyncClient, packages: Path, view: Callable[[], Any]) -> WorkerStats:
    """Deploy all tasks; return the worker's report from when only the first one was on it."""
    one: FleetView | None = None
    for task in TASKS:
        await client.vfms.deploy(packages / task.name)
        await client.vfms.update(task.name, weight=task.weight)
        if one is None:
            await asyncio.sleep(1.1)  # workers report once a second
            one = await view()
    await asyncio.sleep(1.1)
    assert one is not None
    return one.workers[0]


async def _score(client: AsyncClient, examples: dict[str, Examples], report: Report) -> None:
    async def outputs(name: str, rows: list[dict[str, Any]]) -> list[Any]:
        return [result.output for result in await client.infer(name, [as_input(row) for row in rows])]

    for task in TASKS:
        ex = examples[task.name]
        train = await outputs(task.name, ex.train) if needs_train(task) else []
        report.scores[task.name] = score(task, ex, train, await outputs(task.name, ex.held_out))
