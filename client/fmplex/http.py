"""Through a gateway. Bodies are msgpack, so that tensors stay tensors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlencode

import httpx
from pydantic import ValidationError

from fmplex.batches.alone import enqueue_alone
from fmplex.batches.calls import BatchCalls
from fmplex.call import GRACE_S, LONGEST_S, Call, vfm_path
from fmplex.connection import CONNECT_S, TIMES, Connection, typed_error
from fmplex.results import AsyncHandle, Result, wait_task
from fmplex.tunes.calls import TuneCalls
from fmplex_broker.errors import Cancelled, DeadlineExceeded, InvalidInput
from fmplex_broker.packages.archive import MEDIA_TYPE, pack
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.schema import invalid
from fmplex_broker.specs.vfm import VfmChange
from fmplex_broker.specs.vfm_info import VfmInfo
from fmplex_broker.wire.messages import packb


class HttpTransport:
    """The transport to a gateway, `url`; `api_key`: None if it asks for none.

    An enqueued job is a request that waits: it lives as long as this client (straight to the broker, it lives on), unless it is
    offline. Raises `httpx.InvalidURL` for a URL that is none.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self._connection = Connection(url, api_key)
        self._requests: set[asyncio.Task[list[Result]]] = set()

    def batch_calls(self) -> BatchCalls:
        """Return the calls on files and batches; see `Transport.batch_calls`."""
        return BatchCalls(self._connection)

    def tune_calls(self) -> TuneCalls:
        """Return the calls on tuning jobs; see `Transport.tune_calls`."""
        return TuneCalls(self._connection)

    async def _send(self, method: str, path: str, body: Any = None, times: httpx.Timeout = TIMES) -> Any:
        """Send one request and decode its answer. `body`: a value, or an archive as bytes; `times`: for its steps."""
        headers = {"Content-Type": MEDIA_TYPE} if isinstance(body, bytes) else None
        content = _encode(body) if body is not None and not isinstance(body, bytes) else body
        return await self._connection.request(method, path, content, headers=headers, times=times)

    def _info(self, answer: Any) -> VfmInfo:
        """Read the vFM that an answer shows."""
        try:
            return VfmInfo.read(answer)
        except ValidationError as e:
            raise self._connection.not_a_gateway(invalid(e)) from e

    async def infer(self, call: Call) -> list[Result]:
        """Run a call; see `Transport.infer`."""
        try:
            async with asyncio.timeout(call.give_up_s):
                answer = await self._send("POST", vfm_path(call.vfm, "/infer"), _body(call), _times(call))
        except TimeoutError as e:
            raise DeadlineExceeded(
                f"no answer in the call's time: the fleet is overloaded, no worker is alive, or the gateway at "
                f"{self._connection.url} is not"
            ) from e
        try:
            return _results(call, answer)
        except (ValueError, KeyError, TypeError) as e:
            raise self._connection.not_a_gateway(e) from e

    async def stream(self, call: Call) -> AsyncGenerator[str | Result, None]:
        """Generate a text; see `Transport.stream`."""
        content = _encode(_body(call, stream=True))
        path = vfm_path(call.vfm, "/infer")
        result: Result | None = None
        try:
            async with self._connection.stream("POST", path, content, times=_times(call)) as response:
                async for event in _events(response):
                    if "outputs" in event:
                        (result,) = _results(call, event)
                    elif event["text"]:
                        yield event["text"]
        except (ValueError, KeyError, TypeError) as e:
            raise self._connection.not_a_gateway(e) from e
        if result is None:
            raise self._connection.not_a_gateway(EOFError("the stream ended before the text did"))
        yield result  # after all has been read: the connection may be used again

    async def enqueue(self, call: Call) -> AsyncHandle:
        """Enqueue a call; see `Transport.enqueue`. An offline one becomes a batch of its own, which lives on."""
        if call.offline:
            return await enqueue_alone(self.batch_calls(), call)
        task = asyncio.ensure_future(self.infer(call))
        self._requests.add(task)
        task.add_done_callback(self._ended)

        async def wait(timeout: float | None) -> Result:
            try:
                return (await wait_task(task, timeout))[0]
            except asyncio.CancelledError:
                if task.cancelled():
                    raise Cancelled("the job was cancelled") from None
                raise

        async def cancel() -> bool:
            return task.cancel()  # hanging up cancels the job at the gateway

        return AsyncHandle(wait, cancel)

    async def deploy(self, package: Package) -> VfmInfo:
        """Deploy a vFM; see `Transport.deploy`."""
        return self._info(await self._send("POST", "/v1/vfms", pack(package)))

    async def offer(self, name: str, package: Package) -> VfmInfo:
        """Offer a version; see `Transport.offer`."""
        return self._info(await self._send("POST", vfm_path(name, "/versions"), pack(package)))

    async def roll_back(self, name: str, version: str | None) -> VfmInfo:
        """Serve an earlier version; see `Transport.roll_back`."""
        return self._info(await self._send("POST", vfm_path(name, "/rollback"), {"version": version}))

    async def prune(self) -> list[str]:
        """Delete artifacts; see `Transport.prune`."""
        return list((await self._send("POST", "/v1/artifacts/prune"))["pruned"])

    async def page(self, match: str, limit: int, after: str) -> tuple[list[VfmInfo], int]:
        """List vFMs; see `Transport.page`."""
        query = urlencode({"match": match, "limit": limit, "after": after})
        answer = await self._send("GET", f"/v1/vfms?{query}")
        try:
            return [self._info(vfm) for vfm in answer["vfms"]], int(answer["total"])
        except (ValueError, KeyError, TypeError) as e:
            raise self._connection.not_a_gateway(e) from e

    async def show(self, name: str) -> VfmInfo:
        """Return a vFM; see `Transport.show`."""
        return self._info(await self._send("GET", vfm_path(name)))

    async def update(self, name: str, change: VfmChange) -> VfmInfo:
        """Change a vFM; see `Transport.update`."""
        body = change.model_dump(mode="json", exclude_unset=True)
        return self._info(await self._send("PATCH", vfm_path(name), body))

    async def remove(self, name: str) -> None:
        """Remove a vFM; see `Transport.remove`."""
        await self._send("DELETE", vfm_path(name))

    def _ended(self, task: asyncio.Task[list[Result]]) -> None:
        self._requests.discard(task)
        if not task.cancelled():
            task.exception()  # nobody has to ask for the result; what went wrong is theirs who do

    async def close(self) -> None:
        """Cancel the requests that are under way, and close all connections."""
        requests = list(self._requests)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await self._connection.close()


def _encode(body: Any) -> bytes:
    try:
        return packb(body)
    except (TypeError, ValueError) as e:
        raise InvalidInput(f"the call cannot be sent: {e}", field="inputs") from None


def _body(call: Call, **params: Any) -> dict[str, Any]:
    """Lay out a call as the gateway takes it, with more `params`."""
    body: dict[str, Any] = {
        "inputs": list(call.inputs), "params": {**call.params, **params}, "idempotency_key": call.idempotency_key
    }  # fmt: skip
    return body if call.timeout_ms is None else body | {"timeout_ms": call.timeout_ms}


def _results(call: Call, answer: dict[str, Any]) -> list[Result]:
    """Read the results of a call's inputs. Raises `ValueError`, `KeyError` or `TypeError` for what is no answer to it."""
    return [
        Result(
            output, call.vfm, run["version"], run["units"],
            queue_ms=run["queue_ms"], run_ms=run["run_ms"], load_ms=run["load_ms"],
        )
        for output, run in zip(answer["outputs"], answer["runs"], strict=True)
    ]  # fmt: skip


def _times(call: Call) -> httpx.Timeout:
    """Return how long the steps of a call may take. A call without a deadline has the vFM's, which only the gateway knows."""
    answer_s = LONGEST_S if call.timeout_ms is None else call.timeout_ms / 1000
    return httpx.Timeout(answer_s + GRACE_S, connect=min(CONNECT_S, answer_s), write=TIMES.write)


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """Yield server-sent events up to `[DONE]`. Raises the typed error that one of them holds."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data: ")
        if data == line or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise typed_error(event["error"])
        yield event
