"""Through a gateway. Bodies are msgpack, so that tensors stay tensors."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlencode

import httpx

from fmplex.results import AsyncHandle, Result, wait_task
from fmplex_broker.errors import Cancelled, FmplexError, InvalidInput, Unavailable, from_wire
from fmplex_broker.packages.archive import MEDIA_TYPE, pack
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.vfm import VfmChange
from fmplex_broker.wire.messages import packb, unpackb

_MSGPACK = "application/msgpack"
_MARGIN_S = 10.0  # the gateway answers by the deadline; the connection must outlive that
_LONGEST_S = 86_400.0
_POOLS, _CONNECTIONS = 32, 32


class HttpTransport:
    """An enqueued job is a request that waits: it lives as long as this client (straight to the broker, it lives on)."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._calls: set[asyncio.Task[list[Result]]] = set()
        headers = {"Content-Type": _MSGPACK, "Accept": _MSGPACK}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self.url = url
        context = httpx.create_ssl_context()
        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        # A pool looks through all its connections for every request: many small ones, in turn, stay fast.
        self._pools = [
            httpx.AsyncClient(base_url=url, headers=headers, limits=limits, verify=context) for _ in range(_POOLS)
        ]
        self._next = itertools.cycle(self._pools)

    async def _send(self, method: str, path: str, body: Any = None, read_s: float = 90.0) -> Any:
        """`body`: a value, or an archive as bytes."""
        headers = {"Content-Type": MEDIA_TYPE} if isinstance(body, bytes) else {}
        content = _packed(body) if body is not None and not isinstance(body, bytes) else body
        timeout = httpx.Timeout(90.0, connect=5.0, read=read_s, pool=read_s)
        try:
            response = await next(self._next).request(method, path, content=content, headers=headers, timeout=timeout)
        except httpx.HTTPError as e:
            raise self._silent(e) from e
        if response.is_error:
            raise _error(response)
        try:
            return (
                unpackb(response.content) if _MSGPACK in response.headers.get("content-type", "") else response.json()
            )
        except ValueError as e:
            raise self._strange(e) from e

    def _silent(self, e: httpx.HTTPError) -> Unavailable:
        return Unavailable(f"the gateway at {self.url} does not answer ({type(e).__name__}: {e})")

    def _strange(self, e: Exception) -> Unavailable:
        return Unavailable(f"{self.url} does not answer like an FMplex gateway ({e})")

    async def infer(
        self, vfm: str, inputs: list[Any], params: dict[str, Any], timeout_ms: float | None, idempotency_key: str
    ) -> list[Result]:
        body = _call(inputs, params, timeout_ms, idempotency_key)
        got = await self._send("POST", f"/v1/vfms/{_name(vfm)}/infer", body, _read_s(timeout_ms))
        return [Result(output, got["version"]) for output in got["outputs"]]

    async def stream(
        self, vfm: str, value: Any, params: dict[str, Any], timeout_ms: float | None, idempotency_key: str
    ) -> AsyncGenerator[str | Result, None]:
        content = _packed(_call([value], params | {"stream": True}, timeout_ms, idempotency_key))
        timeout = httpx.Timeout(90.0, connect=5.0, read=_read_s(timeout_ms), pool=_read_s(timeout_ms))
        path, result = f"/v1/vfms/{_name(vfm)}/infer", None
        try:
            async with next(self._next).stream("POST", path, content=content, timeout=timeout) as response:
                if response.is_error:
                    await response.aread()
                    raise _error(response)
                async for event in _events(response):
                    if "outputs" in event:
                        result = Result(event["outputs"][0], event["version"])
                    elif event["text"]:
                        yield event["text"]
        except httpx.HTTPError as e:
            raise self._silent(e) from e
        except (ValueError, KeyError, TypeError, IndexError) as e:
            raise self._strange(e) from e
        if result is None:
            raise self._strange(EOFError("the stream ended before the text did"))
        yield result  # after all has been read: the connection may be used again

    async def enqueue(
        self,
        vfm: str,
        value: Any,
        params: dict[str, Any],
        timeout_ms: float | None,
        idempotency_key: str,
        offline: bool,
    ) -> AsyncHandle:
        if offline:
            raise InvalidInput("offline jobs go straight to the broker; connect with a redis:// URL", field="offline")
        task = asyncio.ensure_future(self.infer(vfm, [value], params, timeout_ms, idempotency_key))

        self._calls.add(task)
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

    async def deploy(self, package: Package) -> dict[str, Any]:
        return _mapping(await self._send("POST", "/v1/vfms", pack(package)))

    async def offer(self, name: str, package: Package) -> dict[str, Any]:
        return _mapping(await self._send("POST", f"/v1/vfms/{_name(name)}/versions", pack(package)))

    async def roll_back(self, name: str, version: str | None) -> dict[str, Any]:
        return _mapping(await self._send("POST", f"/v1/vfms/{_name(name)}/rollback", {"version": version}))

    async def prune(self) -> list[str]:
        return list((await self._send("POST", "/v1/artifacts/prune"))["pruned"])

    async def page(self, match: str, limit: int, after: str) -> tuple[list[dict[str, Any]], int]:
        query = urlencode({"match": match, "limit": limit, "after": after})
        got = await self._send("GET", f"/v1/vfms?{query}")
        return list(got["vfms"]), int(got["total"])

    async def show(self, name: str) -> dict[str, Any]:
        return _mapping(await self._send("GET", f"/v1/vfms/{_name(name)}"))

    async def update(self, name: str, change: VfmChange) -> dict[str, Any]:
        return _mapping(
            await self._send("PATCH", f"/v1/vfms/{_name(name)}", change.model_dump(mode="json", exclude_unset=True))
        )

    async def remove(self, name: str) -> None:
        await self._send("DELETE", f"/v1/vfms/{_name(name)}")

    def _ended(self, task: asyncio.Task[list[Result]]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # nobody has to ask for the result; what went wrong is theirs who do

    async def close(self) -> None:
        """Hangs up on what is under way."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for pool in self._pools:
            await pool.aclose()


def _packed(body: Any) -> bytes:
    try:
        return packb(body)
    except (TypeError, ValueError) as e:
        raise InvalidInput(f"the call cannot be sent: {e}", field="inputs") from None


def _call(inputs: list[Any], params: dict[str, Any], timeout_ms: float | None, idempotency_key: str) -> dict[str, Any]:
    body: dict[str, Any] = {"inputs": inputs, "params": params, "idempotency_key": idempotency_key}
    return body if timeout_ms is None else body | {"timeout_ms": timeout_ms}


def _read_s(timeout_ms: float | None) -> float:
    """How long to wait for the gateway. Without a deadline of its own a call has the vFM's, which only the gateway knows."""
    return _LONGEST_S if timeout_ms is None else timeout_ms / 1000 + _MARGIN_S


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """Server-sent events up to `[DONE]`. Raises the typed error that one of them tells."""
    async for line in response.aiter_lines():
        data = line.removeprefix("data: ")
        if data == line or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            raise _told(event["error"])
        yield event


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value)


def _name(vfm: str) -> str:
    if not vfm or not all(c.isalnum() or c in "._-" for c in vfm):
        raise InvalidInput(f"{vfm!r} is not the name of a vFM", field="vfm")
    return vfm


def _error(response: httpx.Response) -> FmplexError:
    try:
        return _told(response.json()["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = Unavailable if response.status_code >= 500 else FmplexError
        return kind(f"the server answered {response.status_code}: {response.text[:200]}")


def _told(wire: Any) -> FmplexError:
    return from_wire({k: wire.get(k) for k in ("code", "message", "field", "retry_after")})
