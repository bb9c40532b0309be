"""The life of vFMs, as clients see it: `client.vfms`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fmplex.transport import Transport
from fmplex_broker.packages.archive import open_package
from fmplex_broker.packages.package import Package, bare
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmChange, VfmSpec

_PAGE = 1000  # vFMs a round trip
Deployable = str | Path | Package | VfmSpec | dict[str, Any]


def as_package(given: Deployable) -> Package:
    if isinstance(given, Package):
        return given
    if isinstance(given, str | Path):
        return open_package(Path(given))
    return bare(given if isinstance(given, VfmSpec) else parse(VfmSpec, given))


class AsyncVfms:
    """The life of vFMs: `client.vfms`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def deploy(self, package: Deployable) -> dict[str, Any]:
        """A package, its folder or archive, or the spec of a vFM without files. Returns once it serves; raises why it cannot."""
        return await self._transport.deploy(await asyncio.to_thread(as_package, package))

    async def count(self, match: str = "*") -> int:
        return (await self._transport.page(match, 1, ""))[1]

    async def show(self, name: str) -> dict[str, Any]:
        return await self._transport.show(name)

    async def update(self, name: str, package: Deployable | None = None, **change: Any) -> dict[str, Any]:
        """`weight`, `limits`, `slo` (mappings or specs) take effect at once; a `package` becomes the new version as soon as every
        worker has accepted it."""
        status = await self._transport.update(name, parse(VfmChange, change)) if change or package is None else {}
        if package is not None:
            status = await self._transport.offer(name, await asyncio.to_thread(as_package, package))
        return status

    async def roll_back(self, name: str, version: str | None = None) -> dict[str, Any]:
        """To the version that served before, or to a certain one of `show(name)["past"]`."""
        return await self._transport.roll_back(name, version)

    async def remove(self, name: str) -> None:
        await self._transport.remove(name)

    async def prune(self) -> list[str]:
        """Delete artifacts that no vFM serves, has on offer or could be rolled back to; returns their versions."""
        return await self._transport.prune()

    async def list(self, match: str = "*", limit: int | None = None) -> list[dict[str, Any]]:
        """vFMs by name, those that match a pattern (`team-a-*`); all of them, or the first `limit`."""
        found: list[dict[str, Any]] = []
        while limit is None or len(found) < limit:
            wanted = _PAGE if limit is None else min(_PAGE, limit - len(found))
            page, _ = await self._transport.page(match, wanted, found[-1]["name"] if found else "")
            found += page
            if len(page) < wanted:
                break
        return found


class Vfms:
    """The same without `await`."""

    def __init__(self, vfms: AsyncVfms, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._vfms = vfms
        self._run = run

    def deploy(self, package: Deployable) -> dict[str, Any]:
        return self._run(self._vfms.deploy(package))  # type: ignore[no-any-return]

    def count(self, match: str = "*") -> int:
        return self._run(self._vfms.count(match))  # type: ignore[no-any-return]

    def show(self, name: str) -> dict[str, Any]:
        return self._run(self._vfms.show(name))  # type: ignore[no-any-return]

    def update(self, name: str, package: Deployable | None = None, **change: Any) -> dict[str, Any]:
        return self._run(self._vfms.update(name, package, **change))  # type: ignore[no-any-return]

    def roll_back(self, name: str, version: str | None = None) -> dict[str, Any]:
        return self._run(self._vfms.roll_back(name, version))  # type: ignore[no-any-return]

    def remove(self, name: str) -> None:
        self._run(self._vfms.remove(name))

    def prune(self) -> list[str]:
        return self._run(self._vfms.prune())  # type: ignore[no-any-return]

    def list(self, match: str = "*", limit: int | None = None) -> list[dict[str, Any]]:
        return self._run(self._vfms.list(match, limit))  # type: ignore[no-any-return]
