"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, overload

from fmplex.batches.aio import AsyncBatches
from fmplex.call import make_call
from fmplex.caller import Caller
from fmplex.mapping import MapPlan, MapRun, Outcome, embed_all, progress_bar
from fmplex.results import AsyncHandle, AsyncTextStream, Result
from fmplex.tunes.aio import AsyncTune, AsyncTunes
from fmplex.tunes.ordering import Data, make_order
from fmplex.vfms import AsyncVfms
from fmplex_broker.errors import FmplexError
from fmplex_broker.specs.fitting import LoraSpec


class AsyncClient:
    """A client of a fleet: runs jobs on its vFMs, and manages the vFMs as `client.vfms`.

    `url`: `http://…` (a gateway), or `redis://…`, `unix://…` (straight to the streams). `api_key`: for a gateway that asks for
    one. `artifacts`: the fleet's artifact store, which is needed to deploy straight to the streams. Raises `InvalidInput` for a
    URL that is neither. Close the client, or use `async with`; a closed client raises `Unavailable`.

    It belongs to the event loop that uses it first. In a process that is forked later, and in a loop that follows the first
    one, once that is closed, it connects anew; in a second loop beside the first it raises `InvalidInput`. Jobs and texts
    stay where they were asked for.

    Calls are repeated, at most `retries` times, where that cannot run a job twice for the caller: every call carries an
    idempotency key. Full queues and rate limits (429) are waited out as the fleet asks, within the same number of tries.

    Every call may raise `Unauthorized`, `Forbidden`, `UnknownVfm`, `InvalidInput` (its `field` is at fault), `TextTooLong`,
    `TooLarge`, `Conflict` (the idempotency key was used for another call), `StaleVersion` (the vFM was deployed for other
    weights than the fleet hosts now), `QueueFull`, `RateLimited`, `Unavailable`, `DeadlineExceeded`, `JobFailed`,
    `NonFiniteOutput` or `Poisoned`; all of them are `FmplexError`.

        async with AsyncClient("http://127.0.0.1:8080") as client:
            print((await client.infer("spam", "you have WON a cruise")).output)
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        artifacts: str | None = None,
        retries: int = 2,
    ) -> None:
        self._caller = Caller(url, api_key, artifacts, retries, ends_with_loop=True)
        self._vfms = AsyncVfms(self._caller.transport)
        self._batches = AsyncBatches(self._caller.ask_batches)
        self._tunes = AsyncTunes(self._caller.ask_tunes, self._caller.transport)

    @property
    def vfms(self) -> AsyncVfms:
        """The vFMs of the fleet: to deploy, list, show, change and remove them."""
        return self._vfms

    @property
    def batches(self) -> AsyncBatches:
        """Offline batches: to submit, list, wait for, cancel and fetch them; through a gateway."""
        return self._batches

    @property
    def tunes(self) -> AsyncTunes:
        """Tuning jobs, which `tune` orders: to list, wait for, pause, cancel and look at them; through a gateway."""
        return self._tunes

    @overload
    async def infer(
        self,
        vfm: str,
        inputs: list[Any],
        *,
        timeout: float | None = ...,
        idempotency_key: str | None = ...,
        **params: Any,
    ) -> list[Result]: ...
    @overload
    async def infer(
        self,
        vfm: str,
        inputs: str | dict[str, Any],
        *,
        timeout: float | None = ...,
        idempotency_key: str | None = ...,
        **params: Any,
    ) -> Result: ...
    async def infer(
        self, vfm: str, inputs: Any, *, timeout: float | None = None, idempotency_key: str | None = None, **params: Any
    ) -> Result | list[Result]:
        """Run one input, or a list of them, through a vFM; return its result, or a list of results in the same order.

        `vfm`: its name. `inputs`: texts, `{"text": …, "text_pair": …}`, `{"input_ids": […]}`, `{"inputs_embeds": tensor}` or,
        for a vFM that generates, `{"messages": […]}`; at most 2,048 of them (`map` takes more). `timeout`: seconds until the
        deadline, by default the vFM's. `idempotency_key`: a call that is repeated with the same key does not run twice; by
        default a random one. `params`: `truncate` cuts over-long texts, `dimensions` shortens embeddings, `top_k` keeps the
        best labels; of a vFM that generates, those of `GenerationParams` (`max_tokens`, `temperature`, `stop`, …).

        Raises the first error among the inputs: `UnknownVfm`, `InvalidInput` (its `field` is at fault), `TextTooLong`,
        `TooLarge`, `QueueFull` or `RateLimited` (after all tries), `DeadlineExceeded`, `Unavailable`, `JobFailed`, …: see
        `AsyncClient`.

            result = await client.infer("spam", "you have WON a cruise", timeout=5)
            result.output, result.version, result.queue_ms  # ({'label': 'spam', …}, …)
        """
        call = make_call(vfm, inputs if isinstance(inputs, list) else [inputs], params, timeout, idempotency_key)
        results = await self._caller.infer(call)
        return results if isinstance(inputs, list) else results[0]

    async def embed(
        self, vfm: str, texts: Iterable[str], *, timeout: float | None = None, **params: Any
    ) -> list[list[float]]:
        """Embed texts with a vFM that has an embedding head; return one vector a text, in the same order.

        `vfm`: its name. `texts`: any number, also none; they are sent in calls of 256. `timeout`: seconds until the deadline of
        each call, by default the vFM's. `params`: `dimensions` shortens the vectors, `truncate` cuts over-long texts. Raises
        `InvalidInput` if the vFM gives no embeddings, and what `infer` raises.
        """
        return await embed_all(self._caller, vfm, texts, params, timeout)

    def stream(
        self,
        vfm: str,
        value: str | dict[str, Any],
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        **params: Any,
    ) -> AsyncTextStream:
        """Generate a text and read it as it comes. Returns at once.

        `vfm`: its name. `value`: a text, `{"messages": […]}` or `{"input_ids": […]}`. `timeout`: seconds until the deadline, by
        default the vFM's. `idempotency_key`: by default a random one; the call is repeated only before the first piece.
        `params`: those of `GenerationParams`. The stream raises typed errors as it is read: what `infer` raises, and
        `StreamRestarted` (a repeated text came out differently: send it again).

            async for piece in client.stream("support-bot", "Dear customer,", max_tokens=100):
                print(piece, end="")
        """
        return self._caller.stream(make_call(vfm, [value], params, timeout, idempotency_key))

    async def enqueue(
        self,
        vfm: str,
        value: Any,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        offline: bool = False,
        **params: Any,
    ) -> AsyncHandle:
        """Enqueue one job and return its handle without waiting for the result.

        `vfm`: its name. `value`: one input, as of `infer`. `timeout`: seconds until the deadline, by default the vFM's.
        `idempotency_key`: a job that is enqueued again with the same key does not run twice; by default a random one.
        `offline`: run it from spare capacity, within a day if `timeout` does not say otherwise (a week at most); through a
        gateway as a batch of its own, which lives on when this client is closed (`batches` is for many). `params` as in
        `infer`. Raises what `infer` raises on admission (of a batch: when it is waited for); errors of the job itself are
        raised by `AsyncHandle.result`.

            handle = await client.enqueue("sentiment", "what a lovely day")
            (await handle.result(timeout=5)).output
        """
        call = make_call(vfm, [value], params, timeout, idempotency_key, offline=offline)
        return await self._caller.enqueue(call)

    @overload
    def map(
        self,
        vfm: str,
        inputs: Iterable[Any],
        *,
        window: int = ...,
        progress: bool = ...,
        timeout: float | None = ...,
        on_error: Literal["raise"] = ...,
        **params: Any,
    ) -> AsyncIterator[Result]: ...
    @overload
    def map(
        self,
        vfm: str,
        inputs: Iterable[Any],
        *,
        window: int = ...,
        progress: bool = ...,
        timeout: float | None = ...,
        on_error: Literal["return"],
        **params: Any,
    ) -> AsyncIterator[Result | FmplexError]: ...
    async def map(
        self,
        vfm: str,
        inputs: Iterable[Any],
        *,
        window: int = 256,
        progress: bool = False,
        timeout: float | None = None,
        on_error: Literal["raise", "return"] = "raise",
        **params: Any,
    ) -> AsyncIterator[Any]:
        """Run any number of inputs through a vFM; yield their results in the same order.

        `vfm`: its name. `inputs`: each as of `infer`; drawn as results are read: about `window` of them are under
        way, fewer where the vFM's queue takes fewer. `progress`: draw a bar. `timeout`: seconds, for each input. `params` as in
        `infer`. Raises what `infer` raises, with the input's place among all (`inputs.70`); what is under way is cancelled
        then, and when the iterator is closed early. `on_error="return"`: what is wrong with an input is yielded in its place,
        as the error itself; what is wrong with all of them (an unknown vFM, a key, a parameter) is raised.

            async for result in client.map("spam", open("mails.txt"), on_error="return"):
                print(result if isinstance(result, FmplexError) else result.output["label"])
        """
        plan, run = MapPlan(inputs, window), MapRun(self._caller, vfm, params, timeout, on_error)
        running: deque[asyncio.Task[list[Outcome]]] = deque()
        with progress_bar(vfm, plan.total, progress) as advance:
            try:
                while True:
                    while len(running) < plan.calls and (chunk := next(plan.chunks, None)) is not None:
                        running.append(asyncio.create_task(run.run(chunk)))
                    if not running:
                        return
                    for result in await running.popleft():
                        advance()
                        yield result
            finally:
                for left in running:
                    left.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def tune(
        self,
        data: Data,
        *,
        model: str,
        name: str | None = None,
        head: str | None = None,
        validation: Data | None = None,
        lora: LoraSpec | Mapping[str, Any] | None = None,
        epochs: int | None = None,
        **options: Any,
    ) -> AsyncTune:
        """Train a vFM on the fleet, beside what its backbone serves; return the job, which goes on by itself.

        `data`: a file (JSON lines, CSV or TSV as `fit` takes them; conversations for a head that generates), the id of one that
        is uploaded, or examples in memory. `model`: the backbone to train a new vFM on, or a vFM to go on from, which becomes
        its next version; also `NAME@VERSION` or `NAME@CHECKPOINT`. `name`: of the new vFM, by default one of the fleet's
        choice. `head`: its kind, by default that of the vFM, else what the data are for. `validation`: more examples, to choose
        the best checkpoint by. `lora`: an adapter to train, beside the head. `epochs`: by default what fits. `options`: what else
        the API has: `batch_size`, `learning_rate_multiplier`; `seed`, `weight` (its part of the device against other tuning
        jobs), `publish` (what becomes of the best checkpoint), `metadata`; and of its `fit` `ia3`, `learning_rate`, `hidden`,
        `pooling`, `truncate`, `shuffle`, `held_out`, `patience`, `system`, ….

        Raises `InvalidInput` for what is wrong with the order at once; what is wrong with the data fails the job in a moment,
        with the lines. Raises `Conflict` where no worker trains, or the name is taken.

            job = await client.tune("mails.csv", model="minilm", name="spam", lora={"r": 8})
            await job.wait(progress=True)
        """
        order = make_order(
            data,
            validation,
            {"model": model, "suffix": name},
            {"n_epochs": epochs},
            {"head": head, "lora": lora},
            options,
        )
        return await self._tunes.submit(order)

    async def close(self) -> None:
        """End the texts that are being read, and close all connections. Through a gateway this cancels enqueued jobs."""
        await self._caller.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
