"""vFMs are deployed, replaced, rolled back, weighed and removed, all at once, under load, while workers come, go and die.

`FMPLEX_RACE_SEED` repeats a run, `FMPLEX_RACE_SECONDS` makes it longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from fmplex import Client, UnknownVfm
from fmplex.local import LocalFleet
from fmplex_broker.packages.package import Package, read_package
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.queue_client import QueueClient
from tests.chaos.conftest import CLASSES, TEXT, VFMS, Crew
from tests.chaos.races import Jobs, Owner, come_and_go, references, settled
from tests.support.broker import Broker
from tests.support.outputs import difference
from tests.support.packages import write_package
from tests.support.waiting import until

SEED = int(os.environ.get("FMPLEX_RACE_SEED") or random.randrange(1_000_000))
SECONDS = float(os.environ.get("FMPLEX_RACE_SECONDS") or 15)
OWNERS, OWNED, VERSIONS = 3, 2, 3  # threads, vFMs of each, versions of each vFM
SHARED = "race-shared"


def write_versions(folder: Path, name: str, seed: int) -> list[Package]:
    """Versions of a vFM: with and without LoRA."""
    folders = [
        write_package(folder / f"{name}-{i}", CLASSES, name=name, rank=4 * (i % 2), seed=seed + i, weight=1.0)
        for i in range(VERSIONS)
    ]
    return [read_package(f) for f in folders]


async def test_changes_race_with_jobs_and_workers(
    fleet: LocalFleet, crew: Crew, broker: Broker, tmp_path: Path
) -> None:
    print(f"FMPLEX_RACE_SEED={SEED}")
    _, second = crew.any()
    second.send_signal(signal.SIGTERM)  # one stays; the other one comes and goes
    await until(lambda: len(crew.processes()) == 1, "one worker is left")
    owned = [
        {name: write_versions(tmp_path, name, 1000 * i + 100 * j) for j in range(OWNED) if (name := f"race-{i}-{j}")}
        for i in range(OWNERS)
    ]
    shared = {SHARED: write_versions(tmp_path, SHARED, 9000)}
    packages = [p for vfms in (*owned, shared) for versions in vfms.values() for p in versions]
    outputs = await asyncio.to_thread(references, fleet.gateway_url, tmp_path, packages)
    with Client(fleet.gateway_url) as client:
        always = {name: client.vfms.show(name).version for name in VFMS}
        outputs |= {artifact_of(version): client.infer(name, TEXT).output for name, version in always.items()}
    owners = [Owner(SEED + i, fleet.gateway_url, fleet.broker_url, owned[i], shared) for i in range(OWNERS)]
    names = [name for vfms in owned for name in vfms] + [SHARED, *VFMS]

    session = QueueClient.connect(fleet.broker_url)
    jobs, over = Jobs(session, names), asyncio.Event()
    asking = asyncio.create_task(jobs.run())
    coming = asyncio.create_task(come_and_go(crew, random.Random(SEED), over))
    for owner in owners:
        owner.start()
    await asyncio.wait({asking, coming}, timeout=SECONDS)
    over.set()
    ways = await coming
    for owner in owners:
        await asyncio.to_thread(owner.finish)
    jobs.finish()
    await asking

    print(f"{jobs.taken} jobs, {jobs.refused} refused; {[dict(o.did) for o in owners]}; workers ended by {dict(ways)}")
    assert ways["SIGKILL"] >= 1
    assert sum(owner.did.total() for owner in owners) >= 30, "there was a race"
    jobs.check(outputs, always)
    assert broker.replies(session._id) == jobs.taken, "a job was answered twice, or not at all"
    await session.close()
    await asyncio.to_thread(_check_end, fleet, broker, owners, outputs)


def _check_end(fleet: LocalFleet, broker: Broker, owners: list[Owner], outputs: dict[str, object]) -> None:
    """Every vFM serves what its last successful change said; of those that were removed nothing is left."""
    with Client(fleet.gateway_url) as client:
        for name, wanted in [pair for owner in owners for pair in owner.wanted.items()]:
            if wanted.version is None:
                with pytest.raises(UnknownVfm):
                    client.vfms.show(name)
            else:
                shown = client.vfms.show(name)
                assert (shown.version, shown.weight, shown.candidate) == (wanted.version, wanted.weight, None)
                assert [p.version for p in shown.past] == wanted.past
        for name in [SHARED, *(name for owner in owners for name in owner.wanted)]:
            vfm = settled(client, name)
            if vfm is not None:
                result = client.infer(name, TEXT)
                assert result.version == vfm.version
                assert difference(result.output, outputs[artifact_of(result.version)]) <= 1e-5
                client.vfms.remove(name)
            assert broker.traces(name) == [], "a removed vFM leaves nothing in the broker"
