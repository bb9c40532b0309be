"""The queues as operators see them, and the commands of docs/protocol.md that show the same by hand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from fmplex_broker.specs.deployments import BackboneInfo
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.fleet_view import Depth, FleetView
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from fmplex_broker.wire.rates import queue_rates
from tests.contract.harness import BACKBONE, Bench, answer, job

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
MANY = 100  # of what no reading may leave out


async def look(bench: Bench) -> FleetView:
    registry = Registry(bench.redis, bench.scripts)
    await registry.register_backbone(BackboneInfo(name=BACKBONE, model="m", modality="text", hidden=8, max_tokens=8))
    return await read_fleet(bench.redis, registry)


async def filled(bench: Bench) -> None:
    """5 interactive jobs of `a`, one of them answered, two in a worker's hands; 7 offline ones, one of them cancelled."""
    await bench.serve("a", "idle")
    worker, late = await bench.worker(), job(cls=OFFLINE)
    await bench.enqueue(*(job() for _ in range(5)), late, *(job(cls=OFFLINE) for _ in range(6)))
    held = await bench.claimed(worker, interactive=3)
    await worker.settle([(held[0], answer())])
    assert await bench.producer().cancel([(late.flow, late.job, late.idem)]) == ["cancelled"]


async def test_depths_are_of_a_vfm_and_a_class(bench: Bench) -> None:
    await filled(bench)
    view = await look(bench)
    assert {flow: (d.waiting, d.pending, d.queued, d.ended) for flow, d in view.depths.items()} == {
        Flow("a", INTERACTIVE): (2, 2, 5, 1),
        Flow("a", OFFLINE): (6, 0, 7, 1),
    }
    assert view.nbytes == {"a": await bench.counted("a")}


async def test_the_oldest_job_of_a_class_says_nothing_of_the_other(bench: Bench) -> None:
    await bench.serve("a")
    await bench.enqueue(job(), job(cls=OFFLINE))
    queue = bench.keys.queue(Flow("a", OFFLINE))
    [(entry, fields)] = await bench.redis.xrange(queue)
    await bench.redis.delete(queue)
    await bench.redis.xadd(queue, fields, id=f"{int(entry.partition(b'-')[0]) - 3_600_000}-0")
    depths = (await look(bench)).depths
    assert 3_600_000 <= depths[Flow("a", OFFLINE)].oldest_ms < 3_660_000
    assert depths[Flow("a", INTERACTIVE)].oldest_ms < 60_000


async def test_the_oldest_job_is_told_of_every_queue(bench: Bench) -> None:
    vfms = [f"v{n:03}" for n in range(MANY)]
    await bench.serve(*vfms)
    await bench.enqueue(*(job(vfm, cls=OFFLINE) for vfm in vfms))
    view = await look(bench)
    view.now_ms += 5_000
    assert len(view.depths) == MANY
    rows = queue_rates(FleetView(view.now_ms - 1_000), await look(bench))["queues"]
    assert [row["waiting"] for row in rows] == [1] * MANY
    raw = await bench.scripts("queues", bench.keys.vfms, [f"offline:{vfm}" for vfm in vfms])
    assert all(oldest for _, _, _, oldest in raw)


async def test_a_broken_key_is_not_the_others_misfortune(bench: Bench) -> None:
    await filled(bench)
    await bench.serve("b")
    await bench.redis.set(bench.keys.queue(Flow("b", OFFLINE)), "no stream")
    assert Flow("a", OFFLINE) in (await look(bench)).depths
    await bench.redis.delete(bench.keys.queue(Flow("b", OFFLINE)))


async def test_rates_are_of_what_came_and_went_between_two_looks(bench: Bench) -> None:
    await filled(bench)
    before = await look(bench)
    worker = await bench.worker("w2")
    await bench.enqueue(*(job(cls=OFFLINE) for _ in range(4)))
    await worker.settle([(held, answer()) for held in await bench.claimed(worker, offline=3)])
    after = await look(bench)
    before.now_ms = after.now_ms - 2_000
    by_class = {(row["vfm"], row["class"]): row for row in queue_rates(before, after)["queues"]}
    assert by_class.keys() == {("a", INTERACTIVE), ("a", OFFLINE)}
    row = by_class["a", OFFLINE]
    assert (row["backbone"], row["waiting"], row["pending"]) == (BACKBONE, 7, 0)
    assert (row["queued_per_s"], row["ended_per_s"]) == (2.0, 1.5)
    assert by_class["a", INTERACTIVE]["queued_per_s"] == by_class["a", INTERACTIVE]["ended_per_s"] == 0


def test_a_vfm_that_was_removed_and_deployed_again_has_no_negative_rates() -> None:
    flow = Flow("a", OFFLINE)
    before, after = (
        FleetView(0, depths={flow: Depth(5, 0, 9, 1_000)}),
        FleetView(1_000, depths={flow: Depth(2, queued=3)}),
    )
    [row] = queue_rates(before, after)["queues"]
    assert (row["queued_per_s"], row["ended_per_s"]) == (3.0, 1.0)


# --- by hand ----------------------------------------------------------------------------------------------------------


def commands() -> dict[str, str]:
    """Return the commands of the page's table, by the figure that they show, for the offline queue of `a`."""
    rows = re.findall(r"^\| ([^|]+?) \| `redis-cli (.+)` \|", PAGE.read_text(), re.MULTILINE)
    return {figure: command.replace("spam", "a") for figure, command in rows}


async def run(bench: Bench, figure: str) -> Any:
    return await bench.redis.execute_command(*shlex.split(commands()[figure]))


async def test_every_figure_has_a_command_that_shows_it(bench: Bench) -> None:
    await filled(bench)
    worker = await bench.worker("w2")
    await bench.claimed(worker, offline=2)
    depth = (await look(bench)).depths[Flow("a", OFFLINE)]
    assert await run(bench, "waiting") == depth.waiting == 4
    assert await run(bench, "in the hands of workers") == depth.pending == 2
    assert abs(await run(bench, "age of the oldest, in ms") - depth.oldest_ms) < 60_000
    assert await run(bench, "queued ever") == depth.queued == 7
    assert await run(bench, "ended ever") == depth.ended == 1
    assert int(await run(bench, "bytes of the vFM's jobs, both classes")) == await bench.counted("a")
    assert len(commands()) == 6
