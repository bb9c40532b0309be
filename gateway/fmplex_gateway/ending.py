"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, again and again until they have ended: `asyncio.wait_for` of Python 3.11, which libraries use, may lose a
    cancellation. What they raise is nobody's any more."""
    tasks = list(tasks)
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)
