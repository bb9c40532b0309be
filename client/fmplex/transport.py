"""Two ways to reach a fleet behind one face: through a gateway (HTTP), or straight to the streams (Redis)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

import httpx

from fmplex.direct import DirectTransport
from fmplex.http import HttpTransport
from fmplex.results import AsyncHandle, Result
from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.vfm import VfmChange


class Transport(Protocol):
    """What a client asks of a transport. Everything raises typed errors (`fmplex_broker.errors`)."""

    async def infer(
        self, vfm: str, inputs: list[Any], params: dict[str, Any], timeout_ms: float | None, idempotency_key: str
    ) -> list[Result]: ...
    async def enqueue(
        self,
        vfm: str,
        value: Any,
        params: dict[str, Any],
        timeout_ms: float | None,
        idempotency_key: str,
        offline: bool,
    ) -> AsyncHandle: ...
    def stream(
        self, vfm: str, value: Any, params: dict[str, Any], timeout_ms: float | None, idempotency_key: str
    ) -> AsyncGenerator[str | Result, None]: ...
    async def deploy(self, package: Package) -> dict[str, Any]: ...
    async def offer(self, name: str, package: Package) -> dict[str, Any]: ...
    async def roll_back(self, name: str, version: str | None) -> dict[str, Any]: ...
    async def prune(self) -> list[str]: ...
    async def page(self, match: str, limit: int, after: str) -> tuple[list[dict[str, Any]], int]: ...
    async def show(self, name: str) -> dict[str, Any]: ...
    async def update(self, name: str, change: VfmChange) -> dict[str, Any]: ...
    async def remove(self, name: str) -> None: ...
    async def close(self) -> None: ...


def open_transport(url: str, api_key: str | None, artifacts: str | None) -> Transport:
    """By the URL's scheme: `http`, `https` (a gateway) or `redis`, `rediss`, `unix` (the streams; `artifacts` is the fleet's
    store). Raises `InvalidInput`."""
    scheme = url.partition("://")[0]
    try:
        if scheme in ("http", "https"):
            return HttpTransport(url, api_key)
        if scheme in ("redis", "rediss", "unix"):
            return DirectTransport(url, artifacts)
    except (ValueError, httpx.InvalidURL) as e:
        raise InvalidInput(f"{url!r} is not a URL: {e}", field="url") from None
    raise InvalidInput(
        f"{url!r} is neither http(s):// (a gateway) nor redis(s):// or unix:// (the broker)", field="url"
    )
