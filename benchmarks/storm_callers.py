"""The callers of a storm: every call is sent until it is answered, over whatever way, and every answer is compared."""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.storm_record import Found
from fmplex import AsyncClient, FmplexError, Result
from tests.support.outputs import difference

# What a fleet may say in a storm: nobody can answer now, come back. Every other error is wrong, for no call deserves one.
PASSING = frozenset({"unavailable", "broker_unavailable", "store_unavailable", "no_worker"})
TOLERANCE = 1e-5
_DEADLINE_S = 60.0
_HANGS_S = _DEADLINE_S + 20  # a call that has neither answered nor raised by then never will
_PATIENCE_S = 90.0
_REMEMBERED_S = 30.0  # the fleet remembers a reply for a minute
_PAUSE_S = 0.1
_THINK_S = 0.3
_AGAIN = 0.25  # of the calls are asked once more, with the same key
_HANDLES = 0.2  # of those with one text are enqueued first and asked for their result then

# vFM -> its texts, each with what it answers
Known = Mapping[str, Sequence[tuple[str, Any]]]


@dataclass(frozen=True, slots=True)
class Case:
    """A call of a vFM, and the outputs that it must give."""

    vfm: str
    texts: tuple[str, ...]
    outputs: tuple[Any, ...]


async def learn(client: AsyncClient, vfms: Sequence[str], texts: Sequence[str]) -> Known:
    """Ask every vFM every text, one after the other: what nobody disturbs is what is expected."""
    return {vfm: [(text, (await client.infer(vfm, text)).output) for text in texts] for vfm in vfms}


class Calls:
    """Sends calls over `routes`, by name: clients that repeat nothing themselves. `open`: idempotency keys of calls that are not
    answered yet."""

    def __init__(self, routes: Mapping[str, AsyncClient], known: Known, found: Found) -> None:
        self.open: set[str] = set()
        self._routes = routes
        self._known = known
        self._found = found

    async def come(self, rng: random.Random, over: asyncio.Event) -> None:
        """Make one call after the other, at random, until it is over; each attempt goes over another route."""
        routes = iter(lambda: rng.choice(list(self._routes)), None)
        while not over.is_set():
            vfm = rng.choice(list(self._known))
            picked = rng.sample(self._known[vfm], rng.choice([1, 1, 3]))
            case = Case(vfm, *zip(*picked, strict=True))
            await self._answered(case, routes, again=rng.random() < _AGAIN, handle=rng.random() < _HANDLES)
            await asyncio.sleep(rng.uniform(0, _THINK_S))

    async def probe(self, texts: int = 1) -> None:
        """Ask every vFM over every route, so many of its texts a call, until each call has been answered."""
        cases = [Case(vfm, *zip(*known[:texts], strict=True)) for vfm, known in self._known.items()]
        await asyncio.gather(
            *(self._answered(case, itertools.repeat(route)) for route in self._routes for case in cases)
        )

    async def answered(self, keys: set[str]) -> None:
        """Wait until none of these calls is open."""
        while keys & self.open:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _answered(self, case: Case, routes: Iterator[str], *, again: bool = False, handle: bool = False) -> None:
        key = secrets.token_hex(12)
        self.open.add(key)
        try:
            results = await self._until_answered(case, key, routes, handle, _PATIENCE_S, self._found.lost)
        finally:
            self.open.discard(key)
        if results is None:
            return
        self._found.did["answered"] += 1
        self._compare(case, results)
        if again and (more := await self._until_answered(case, key, routes, False, _REMEMBERED_S, [])):
            self._found.did["answered again"] += 1
            if _runs(more) != _runs(results):
                self._found.doubled.append(f"{case.vfm} ran again after its answer: {_runs(results)}, {_runs(more)}")

    async def _until_answered(
        self, case: Case, key: str, routes: Iterator[str], handle: bool, patience_s: float, late: list[str]
    ) -> list[Result] | None:
        """Send a call until it is answered; None if it never was, which is noted: in `late` when patience is over."""
        begun, said = time.monotonic(), ""
        while time.monotonic() < begun + patience_s:
            route, limit = next(routes), asyncio.timeout(_HANGS_S)
            try:
                async with limit:
                    return await self._send(self._routes[route], case, key, handle)
            except FmplexError as e:
                self._found.errors[e.code] += 1
                said = f"{case.vfm} over {route}: {e.code}: {e}"
                if e.code not in PASSING:
                    self._found.wrong.append(said)
                    return None
            except Exception as e:
                said = f"{case.vfm} over {route}: {type(e).__name__}: {e}"
                if limit.expired():
                    self._found.stuck.append(said)
                    return None
                self._found.untyped.append(said)
            await asyncio.sleep(_PAUSE_S)
        late.append(f"no answer within {patience_s:.0f} s; at last {said}")
        return None

    async def _send(self, client: AsyncClient, case: Case, key: str, handle: bool) -> list[Result]:
        if handle and len(case.texts) == 1:
            sent = await client.enqueue(case.vfm, case.texts[0], timeout=_DEADLINE_S, idempotency_key=key)
            return [await sent.result()]
        return await client.infer(case.vfm, list(case.texts), timeout=_DEADLINE_S, idempotency_key=key)

    def _compare(self, case: Case, results: list[Result]) -> None:
        if len(results) != len(case.texts):
            self._found.wrong.append(f"{case.vfm}: {len(results)} results for {len(case.texts)} texts")
            return
        for text, wanted, result in zip(case.texts, case.outputs, results, strict=True):
            if (off := difference(result.output, wanted)) > TOLERANCE:
                self._found.wrong.append(f"{case.vfm}, {text!r}: off by {off:.2g}: {result.output}, not {wanted}")


def _runs(results: list[Result]) -> list[tuple[Any, ...]]:
    """Say which run gave each result: no two take the same microseconds."""
    return [(result.version, result.queue_ms, result.run_ms) for result in results]
