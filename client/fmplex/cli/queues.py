"""`fmplex queues`: what waits in the queue of every vFM and class, and how it moves."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from fmplex.cli.common import AsJson, broker_url, out, print_json
from fmplex.columns import Column, FittedTable
from fmplex_broker.wire.rates import queue_rates

_COLUMNS = (
    Column("vFM"), Column("class", left=True), Column("backbone", 3, left=True), Column("waiting"), Column("pending", 2),
    Column("oldest"), Column("queued/s", 1), Column("ended/s"),
)  # fmt: skip


def queues(
    broker: Annotated[str | None, typer.Option(help="Broker URL; default: the fleet that runs here.")] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between the two looks that rates are of.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show the queue of every vFM and class that has jobs: how many wait, how many a worker has in hand, how old the oldest is,
    and how many come and go a second."""
    rows = asyncio.run(_look_twice(broker_url(broker), interval))
    if as_json:
        print_json(rows)
    else:
        out.print(draw(rows))


async def _look_twice(url: str, interval: float) -> dict[str, Any]:
    from fmplex_broker.streams.connection import Scripts, open_redis
    from fmplex_broker.streams.fleet import read_fleet
    from fmplex_broker.streams.registry import Registry

    redis = open_redis(url)
    registry = Registry(redis, Scripts(redis))
    try:
        before = await read_fleet(redis, registry)
        await asyncio.sleep(interval)
        return queue_rates(before, await read_fleet(redis, registry))
    finally:
        await redis.aclose()


def draw(rows: dict[str, Any]) -> RenderableType:
    """Draw the rows of `queue_rates` as a table, or say that there are none."""
    cells = [
        [
            r["vfm"], r["class"], r["backbone"], str(r["waiting"]), str(r["pending"]),
            f"{r['oldest_ms'] / 1000:.1f}s" if r["oldest_ms"] else "-", f"{r['queued_per_s']:.1f}", f"{r['ended_per_s']:.1f}",
        ]
        for r in rows["queues"]
    ]  # fmt: skip
    return FittedTable(_COLUMNS, cells) if cells else "nothing is queued"
