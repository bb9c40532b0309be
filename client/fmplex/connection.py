"""Requests to a gateway and its answers; what goes wrong comes back as typed errors."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.request import getproxies

import httpx

from fmplex_broker.errors import (
    Busy,
    Conflict,
    DeadlineExceeded,
    FmplexError,
    Forbidden,
    InvalidInput,
    TextTooLong,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnknownVfm,
    from_wire,
)
from fmplex_broker.wire.messages import unpackb

MSGPACK, JSON = "application/msgpack", "application/json"
CONNECT_S = 5.0
TIMES = httpx.Timeout(90.0, connect=CONNECT_S)
_POOLS, _CONNECTIONS = 32, 32
# OpenAI's words, on its routes, for what FMplex has errors of its own for.
_BY_CODE: dict[str, type[FmplexError]] = {"context_length_exceeded": TextTooLong, "model_not_found": UnknownVfm}
_BY_STATUS: dict[int, type[FmplexError]] = {
    400: InvalidInput, 401: Unauthorized, 403: Forbidden, 408: TooSlow, 409: Conflict, 413: TooLarge, 422: InvalidInput,
    429: Busy, 503: Unavailable, 504: DeadlineExceeded,
}  # fmt: skip
Content = bytes | AsyncIterator[bytes] | None


class Connection:
    """Connections to the gateway at `url`; `api_key`: None if it asks for none. Raises `httpx.InvalidURL` for a URL that is
    none."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self.url = url
        context = _ssl_context(url)
        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        # A pool looks through all its connections for every request: many small ones, in turn, stay fast.
        self._pools = [
            httpx.AsyncClient(base_url=url, headers=headers, limits=limits, verify=context) for _ in range(_POOLS)
        ]
        self._next = itertools.cycle(self._pools)
        self._closed = False

    def check_open(self) -> None:
        """Raise `Unavailable` if this is closed: whoever asks has a job of a closed client left."""
        if self._closed:
            raise Unavailable("this client is closed; make a new one")

    def _pool(self) -> httpx.AsyncClient:
        self.check_open()
        return next(self._next)

    async def request(
        self,
        method: str,
        path: str,
        content: Content = None,
        *,
        headers: dict[str, str] | None = None,
        times: httpx.Timeout = TIMES,
    ) -> Any:
        """Send one request and decode its answer. `headers`: where they differ; `times`: for its steps. Raises the error that it
        is answered with, or `Unavailable`."""
        try:
            response = await self._pool().request(method, path, content=content, headers=headers, timeout=times)
        except httpx.HTTPError as e:
            raise self.no_answer(e) from e
        if response.is_error:
            raise _response_error(response)
        try:
            return unpackb(response.content) if MSGPACK in response.headers.get("content-type", "") else response.json()
        except ValueError as e:
            raise self.not_a_gateway(e) from e

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        content: Content = None,
        *,
        headers: dict[str, str] | None = None,
        times: httpx.Timeout = TIMES,
    ) -> AsyncIterator[httpx.Response]:
        """Send one request and give its answer while it comes. Raises as `request` does, also for what breaks off."""
        try:
            async with self._pool().stream(method, path, content=content, headers=headers, timeout=times) as response:
                if response.is_error:
                    await response.aread()
                    raise _response_error(response)
                yield response
        except httpx.HTTPError as e:
            raise self.no_answer(e) from e

    def no_answer(self, e: httpx.HTTPError) -> Unavailable:
        """Make the error of a request that got no answer."""
        return Unavailable(f"the gateway at {self.url} does not answer ({type(e).__name__}: {e})")

    def not_a_gateway(self, e: Exception) -> Unavailable:
        """Make the error of an answer that cannot be read."""
        return Unavailable(f"{self.url} does not answer like an FMplex gateway of this client's version ({e})")

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        for pool in self._pools:
            await pool.aclose()


def _ssl_context(url: str) -> ssl.SSLContext:
    """Make what connections to `url` need of TLS. Reading all certificates of authorities takes longer than a call: without TLS
    on the way none are read, and then none is trusted."""
    if any(way.lower().startswith("https:") for way in (url, *getproxies().values())):
        return httpx.create_ssl_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _response_error(response: httpx.Response) -> FmplexError:
    try:
        return typed_error(response.json()["error"], response.status_code)
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = Unavailable if response.status_code >= 500 else FmplexError
        return kind(f"the server answered {response.status_code}: {response.text[:200]}")


def typed_error(wire: Any, status: int = 500) -> FmplexError:
    """Read an error as a gateway sends it. `status`: that it came with, which says what it is where its code is OpenAI's word."""
    said = {k: wire.get(k) for k in ("code", "message", "field", "retry_after")}
    error = from_wire(said | {"field": wire.get("field", wire.get("param"))})
    if type(error) is not FmplexError or said["code"] == FmplexError.code:
        return error
    kind = _BY_CODE.get(str(said["code"])) or _BY_STATUS.get(status, FmplexError)
    return kind(error.message, field=error.field, retry_after=error.retry_after)
