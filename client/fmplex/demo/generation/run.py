"""The demo from end to end: train what is missing, serve, let all vFMs answer, measure, report."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

from rich.console import Console

from fmplex.aio import AsyncClient
from fmplex.demo.generation.answers import ask_all
from fmplex.demo.generation.measuring import measure_sharing, memory
from fmplex.demo.generation.recipe import BACKBONE, FULL, POSITIONS, QUICK, TrainingPlan, cache_folder, make_plan
from fmplex.demo.generation.report import GenerationReport
from fmplex.demo.generation.texts import pairs
from fmplex.demo.generation.training import train
from fmplex.demo.generation.voices import VOICES
from fmplex.local import LocalFleet
from fmplex_broker.errors import FmplexError
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.stats import WorkerStats

_REPORT_S = 1.1  # workers report once a second


def run_demo(out: Console, report_file: Path | None, seconds: float, *, quick: bool = False) -> int:
    """Run the demo: print its tables on `out`, write its figures to `report_file`, measure for about so many seconds; `quick`:
    train so little that no text makes sense. Returns the exit code: 0 if everything worked and every voice is recognised."""
    report, start = GenerationReport(), time.monotonic()
    try:
        plan = make_plan(QUICK if quick else FULL, pairs(), cache_folder())
        report.trained = train(out, plan)
        report.train_seconds = time.monotonic() - start
        with tempfile.TemporaryDirectory(prefix="fmplex-demo-") as folder:
            _serve(out, plan, Path(folder), report, seconds)
    except FmplexError as e:
        report.failures.append(f"{e.code}: {e}")  # what could not be measured need not be judged as well
    else:
        report.check(voices=not quick)
    report.total_seconds = time.monotonic() - start
    report.show(out)
    if report_file is not None:
        report_file.write_text(json.dumps(report.to_json(), indent=2))
    return 1 if report.failures else 0


def _serve(out: Console, plan: TrainingPlan, folder: Path, report: GenerationReport, seconds: float) -> None:
    config = folder / "fleet.toml"
    config.write_text(
        f'broker = "embedded"\n[backbone]\nname = "{BACKBONE}"\nmodel = {json.dumps(str(plan.decoder.out))}\n'
        f"max_tokens = {POSITIONS}\n[worker]\nkv_bytes = 268435456\n"
    )
    fleet = LocalFleet(config, port=0, data=folder / "fleet")
    with out.status("starting a fleet"):
        fleet.start()
    try:
        out.print(f"one worker, one decoder for {len(VOICES)} vFMs, gateway {fleet.gateway_url}")
        asyncio.run(_measure(out, fleet, plan, report, seconds))
    finally:
        fleet.stop()


async def _measure(
    out: Console, fleet: LocalFleet, plan: TrainingPlan, report: GenerationReport, seconds: float
) -> None:
    async with AsyncClient(fleet.gateway_url) as client:
        one = await _deploy(client, plan, fleet.broker_url)
        report.answers = await ask_all(out, client, plan.prompts)
        with out.status("the same texts together, and one after the other"):
            report.sharing = await measure_sharing(client, plan.prompts, seconds)
        report.memory = memory(one, await _worker(fleet.broker_url))


async def _deploy(client: AsyncClient, plan: TrainingPlan, broker: str) -> WorkerStats:
    """Deploy all vFMs; return the worker's report with only the bare backbone on it, after it has generated a text."""
    plain = next(voice for voice in VOICES if not voice.rank)
    await client.vfms.deploy({"name": plain.name, "backbone": BACKBONE, "head": plain.head})
    await client.infer(plain.name, plan.prompts[0], temperature=0.0)
    one = await _worker(broker)
    for spec in plan.loras:
        await client.vfms.deploy(spec.out)
    return one


async def _worker(broker: str) -> WorkerStats:
    """Return the worker's next report."""
    await asyncio.sleep(_REPORT_S)
    redis = open_redis(broker)
    try:
        return (await read_fleet(redis, Registry(redis, Scripts(redis)))).workers[0]
    finally:
        await redis.aclose()
