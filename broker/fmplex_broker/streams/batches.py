"""Many items in few calls of a script: how they are cut into batches, and what becomes of a batch that the script fails on."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from fmplex_broker.errors import BrokerFault

log = logging.getLogger(__name__)
PER_CALL = 64  # larger scripts hold the server without being faster
BATCH_BYTES = 4_000_000  # likewise, and the server holds what it is sent twice while the script runs

T = TypeVar("T")
R = TypeVar("R")


def cut(items: Sequence[T], size: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Cut items into batches: `PER_CALL` of them at most, and `BATCH_BYTES` unless one is larger alone."""
    start = nbytes = 0
    for at, item in enumerate(items):
        if at > start and (at - start == PER_CALL or nbytes + size(item) > BATCH_BYTES):
            yield items[start:at]
            start, nbytes = at, 0
        nbytes += size(item)
    if start < len(items):
        yield items[start:]


async def send_all(
    send: Callable[[Sequence[T]], Awaitable[Sequence[R]]], items: Sequence[T], size: Callable[[T], int]
) -> list[R | None]:
    """Send items in batches by `send`, which answers each of them and may be repeated. An item that breaks the script harms no
    other: the items of its batch are sent one by one, and its own answer is None. Raises `BrokerUnavailable`."""
    out: list[R | None] = []
    for batch in cut(items, size):
        try:
            out += await send(batch)
        except BrokerFault as e:
            if len(batch) > 1:
                log.warning("a script fails on one of %d (%s); sending them one by one", len(batch), e)
            out += [await _alone(send, item) for item in batch]
    return out


async def _alone(send: Callable[[Sequence[T]], Awaitable[Sequence[R]]], item: T) -> R | None:
    try:
        return (await send([item]))[0]
    except BrokerFault as e:
        log.error("a script fails: %s", e)
        return None
