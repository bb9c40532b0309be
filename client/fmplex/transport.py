"""Two ways to reach a fleet behind one protocol: through a gateway (HTTP), or straight to the streams (Redis)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

import httpx

from fmplex.batches.calls import BatchCalls
from fmplex.call import Call
from fmplex.http import HttpTransport
from fmplex.results import AsyncHandle, Result
from fmplex.tunes.calls import TuneCalls
from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.broker_url import BROKER_SCHEMES, better_broker_url
from fmplex_broker.specs.vfm import VfmChange
from fmplex_broker.specs.vfm_info import VfmInfo


class Transport(Protocol):
    """The operations that a client asks of a transport. Every method raises typed errors (`fmplex_broker.errors`)."""

    async def infer(self, call: Call) -> list[Result]:
        """Run the inputs of a call; return their results in order, or raise the first error among them."""
        ...

    async def enqueue(self, call: Call) -> AsyncHandle:
        """Enqueue the only input of a call and return without waiting for its result."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[str | Result, None]:
        """Generate a text for the only input of a call: yield its pieces as they come, and its result last.

        Closing the generator early cancels the job.
        """
        ...

    def batch_calls(self) -> BatchCalls:
        """Return the calls on files and batches. Raises `InvalidInput` where there is no gateway."""
        ...

    def tune_calls(self) -> TuneCalls:
        """Return the calls on tuning jobs. Raises `InvalidInput` where there is no gateway."""
        ...

    async def deploy(self, package: Package) -> VfmInfo:
        """Deploy a new vFM; return it once it serves."""
        ...

    async def offer(self, name: str, package: Package) -> VfmInfo:
        """Offer a new version of a vFM; return the vFM once every worker has accepted the version."""
        ...

    async def roll_back(self, name: str, version: str | None) -> VfmInfo:
        """Serve an earlier version again (None: the last one before); return the vFM."""
        ...

    async def prune(self) -> list[str]:
        """Delete artifacts that nothing needs; return their versions."""
        ...

    async def page(self, match: str, limit: int, after: str) -> tuple[list[VfmInfo], int]:
        """List up to `limit` vFMs whose names match, from the name that follows `after`; and how many match in all."""
        ...

    async def show(self, name: str) -> VfmInfo:
        """Return a vFM as it is now."""
        ...

    async def update(self, name: str, change: VfmChange) -> VfmInfo:
        """Change weight, limits or SLO of a vFM at once; return it."""
        ...

    async def remove(self, name: str) -> None:
        """Remove a vFM; return when it is gone."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


def open_transport(url: str, api_key: str | None, artifacts: str | None) -> Transport:
    """Open the transport that the URL's scheme names: `http`, `https` (a gateway) or `redis`, `rediss`, `unix` (the streams;
    `artifacts` is the fleet's store). Raises `InvalidInput`."""
    scheme = url.partition("://")[0]
    try:
        if scheme in ("http", "https"):
            return HttpTransport(url, api_key)
        if scheme in BROKER_SCHEMES:
            # Imported late: who speaks to a gateway should not wait for the client of Redis.
            from fmplex.direct import DirectTransport

            return DirectTransport(url, artifacts)
    except (ValueError, httpx.InvalidURL) as e:
        raise InvalidInput(f"{url!r} is not a URL: {e}", field="url") from None
    raise InvalidInput(
        better_broker_url(scheme)
        or f"{url!r} is neither http(s):// (a gateway) nor redis(s):// or unix:// (the broker)",
        field="url",
    )
