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
        more = size(item)
        if at > start and (at - start == PER_CALL or nbytes + more > BATCH_BYTES):
            yield items[start:at]
            start, nbytes = at, 0
        nbytes += more
    if start < len(items):
        yield items[start:]


async def send_all(
    send: Callable[[Sequence[T]], Awaitable[Sequence[R]]], items: Sequence[T], size: Callable[[T], int]
) -> list[R | None]:
    """Send items in batches by `send`, which answers each of them and may be repeated. An item that breaks the script harms no
    other: the items of its batch are sent one by one, a single one too (what the script did before it broke stays done, and is
    answered now), and its own answer is None. Raises `BrokerFault` if all of a batch break it again, and `BrokerUnavailable`."""
    out: list[R | None] = []
    for batch in cut(items, size):
        try:
            out += await send(batch)
        except BrokerFault as fault:
            out += await _one_by_one(send, batch, fault)
    return out


async def _one_by_one(
    send: Callable[[Sequence[T]], Awaitable[Sequence[R]]], batch: Sequence[T], fault: BrokerFault
) -> list[R | None]:
    out: list[R | None] = []
    for item in batch:
        try:
            out += await send([item])
        except BrokerFault as e:
            log.error("one of %d in a call of the broker: %s", len(batch), e.message)
            out.append(None)
    if all(answer is None for answer in out):
        raise fault
    return out
