"""`fmplex top`: two looks at the fleet and what changed between them.

`fmplex_broker.wire.rates` computes it as plain values; tables.py draws them.
"""

from __future__ import annotations

import asyncio

from rich.live import Live

from fmplex.cli.common import out, print_json
from fmplex.cli.top.tables import draw
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.rates import fleet_rates


async def run_top(url: str, interval: float, limit: int, *, once: bool, as_json: bool) -> None:
    """Draw the fleet every `interval` seconds until interrupted, or `once`; `limit` vFMs at most. Raises `BrokerUnavailable`."""
    redis = open_redis(url)
    registry = Registry(redis, Scripts(redis))
    try:
        before = await read_fleet(redis, registry)
        with Live(console=out, auto_refresh=False, screen=not once, transient=False) as live:
            while True:
                # Workers report once a second: looks closer together would show nothing in between.
                await asyncio.sleep(max(interval, 1.05))
                now = await read_fleet(redis, registry)
                rows = fleet_rates(before, now)
                if as_json:
                    print_json(rows)
                else:
                    live.update(draw(rows, limit), refresh=True)
                if once:
                    return
                before = now
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    finally:
        await redis.aclose()
