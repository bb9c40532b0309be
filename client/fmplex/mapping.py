"""Many inputs: the calls of a `map`, how many of them are under way, and the bar that shows its progress."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sized
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from rich.progress import Progress

from fmplex.call import Call, make_call
from fmplex.caller import Caller
from fmplex.results import Result
from fmplex_broker.errors import (
    Busy,
    Conflict,
    FmplexError,
    Forbidden,
    InvalidInput,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownVfm,
    VfmClosed,
)

T = TypeVar("T")
Outcome = Result | FmplexError
_PER_CALL = 32  # inputs of a `map` that travel together
_TEXTS_PER_CALL, _TEXTS_AT_ONCE = 256, 2048  # of an `embed`


class Chunk(NamedTuple):
    """Inputs of a `map` that follow each other; `first`: the place of the first one among all."""

    first: int
    inputs: list[Any]


class MapPlan:
    """The calls of a `map` over `inputs` with about `window` of them under way: `chunks` of inputs, at most `per_call` in each,
    `calls` chunks at a time; `total` inputs, None if that is not known. Raises `InvalidInput`."""

    def __init__(self, inputs: Iterable[Any], window: int, per_call: int = _PER_CALL) -> None:
        if isinstance(inputs, str | dict):
            raise InvalidInput("map takes many inputs: give a list or an iterator", field="inputs")
        if type(window) is not int or window < 1:
            raise InvalidInput(f"window must be a whole number from 1 on, not {window!r}", field="window")
        size = min(per_call, window)
        self.total = len(inputs) if isinstance(inputs, Sized) else None
        self.calls = max(1, window // size)
        self.chunks = _chunks(iter(inputs), size)


def _chunks(inputs: Iterator[Any], size: int) -> Iterator[Chunk]:
    first = 0
    while chunk := list(islice(inputs, size)):
        yield Chunk(first, chunk)
        first += len(chunk)


class MapRun:
    """Runs the chunks of a `map` of the vFM `vfm`, with `params` and `timeout` (seconds) for each call, over a `caller`.

    A call that is larger than the vFM's queue is split. A queue that its own calls fill is no error: the others wait until some
    of them are answered. `on_error`: `raise` the first error, or `return` it in its input's place. Raises `InvalidInput`.
    """

    def __init__(
        self, caller: Caller, vfm: str, params: Mapping[str, Any], timeout: float | None, on_error: str = "raise"
    ) -> None:
        if on_error not in ("raise", "return"):
            raise InvalidInput(f"on_error must be 'raise' or 'return', not {on_error!r}", field="on_error")
        make_call(vfm, (), params, timeout)  # what is wrong with these is told before the first input
        self._caller = caller
        self._call: Callable[[list[Any]], Call] = lambda inputs: make_call(vfm, inputs, params, timeout)
        self._returns = on_error == "return"
        self._room = _Room()
        self._most: int | None = None  # inputs in a call, once one was too large

    async def run(self, chunk: Chunk) -> list[Outcome]:
        """Run a chunk; return what came of its inputs, in order. Raises the first error whose place is not there, its `field`
        counted from the first input of all."""
        outcomes: list[Outcome] = []
        while (at := len(outcomes)) < len(chunk.inputs):
            end = None if self._most is None else at + self._most
            outcomes += await self._piece(Chunk(chunk.first + at, chunk.inputs[at:end]))
        return outcomes

    async def _piece(self, piece: Chunk) -> list[Outcome]:
        size = len(piece.inputs)
        try:
            return list(await self._send(piece.inputs))
        except FmplexError as e:
            _count_from(piece.first, e)
            if _is_too_many(e) and size > 1:
                self._most = min(self._most or size, size // 2)
                return await self.run(piece)
            if not self._returns or _concerns_all_inputs(e):
                raise
            if size == 1 or isinstance(e, Unavailable | Busy):
                return [e] * size
        # One of them is wrong, or some: each for itself.
        singles = [self._piece(Chunk(piece.first + i, [value])) for i, value in enumerate(piece.inputs)]
        return [outcome for outcomes in await all_of(singles) for outcome in outcomes]

    async def _send(self, inputs: list[Any]) -> list[Result]:
        call, patient = self._call(inputs), False
        while True:
            async with self._room.place():
                try:
                    results = await self._caller.infer(call, patient=patient)
                except Busy:
                    if patient:
                        raise
                    patient = not self._room.shrink()  # alone, and refused: others fill the queue
                else:
                    self._room.grow()
                    return results


class _Room:
    """How many calls of a map are under way: any number, until a queue refuses one; then no more than were taken, and one more
    after as many answers."""

    def __init__(self) -> None:
        self._most = float("inf")
        self._inside = 0
        self._left = asyncio.Event()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        while self._inside + 1 > self._most:
            await self._left.wait()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()  # wakes all who wait now
            self._left.clear()

    def shrink(self) -> bool:
        """Take the refusal of a call that holds a place; return whether others hold one too."""
        self._most = max(1, self._inside - 1)
        return self._inside > 1

    def grow(self) -> None:
        """Take an answer."""
        self._most += 1 / self._most


async def embed_all(
    caller: Caller, vfm: str, texts: Iterable[str], params: Mapping[str, Any], timeout: float | None
) -> list[list[float]]:
    """Embed any number of texts, also none; return one vector a text. `timeout`: seconds, for each call. Raises `InvalidInput`
    for a single text, or a vFM that gives no embeddings."""
    if isinstance(texts, str):
        raise InvalidInput("embed takes a list of texts", field="texts")
    run = MapRun(caller, vfm, params, timeout)
    plan = MapPlan(texts, _TEXTS_AT_ONCE, _TEXTS_PER_CALL)
    at_once = asyncio.Semaphore(plan.calls)

    async def vectors(chunk: Chunk) -> list[list[float]]:
        async with at_once:
            results = await run.run(chunk)
        return [_vector(result, vfm) for result in results]

    return [vector for part in await all_of([vectors(chunk) for chunk in plan.chunks]) for vector in part]


def _vector(result: Outcome, vfm: str) -> list[float]:
    if isinstance(result, FmplexError):
        raise result
    if "embedding" not in result.output:
        raise InvalidInput(f"{vfm!r} does not give embeddings; use infer", field="vfm")
    vector: list[float] = result.output["embedding"].tolist()
    return vector


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines together; return their results in order. Raises the first error, once the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_too_many(e: FmplexError) -> bool:
    """Tell whether a call was too large as a whole, so that parts of it may be taken."""
    return isinstance(e, TooLarge) and e.field in (None, "inputs")


def _concerns_all_inputs(e: FmplexError) -> bool:
    """Tell whether a call would fail with any inputs: an unknown vFM, a key that may not, a wrong parameter."""
    if isinstance(e, InvalidInput):
        return e.field is not None and e.field.partition(".")[0] != "inputs"
    return isinstance(e, UnknownVfm | Unauthorized | Forbidden | Conflict | VfmClosed)


def _count_from(first: int, e: FmplexError) -> None:
    """Let the field of a chunk's error name the place of its input among all."""
    if found := re.match(r"inputs\.(\d+)(.*)", e.field or ""):
        e.field = f"inputs.{first + int(found[1])}{found[2]}"


@contextmanager
def progress_bar(title: str, total: int | None, shown: bool) -> Iterator[Callable[[], None]]:
    """Draw a progress bar, unless it is not `shown`, and give the function that moves it on by one."""
    with Progress(disable=not shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
