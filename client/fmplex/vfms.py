"""Managing the vFMs of a fleet: `client.vfms`."""

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
    """Read what can be deployed: a package, its folder or archive, or the spec of a vFM without files. Raises `PackageRejected`
    or `InvalidInput`."""
    if isinstance(given, Package):
        return given
    if isinstance(given, str | Path):
        return open_package(Path(given))
    return bare(given if isinstance(given, VfmSpec) else parse(VfmSpec, given))


class AsyncVfms:
    """The vFMs of a fleet, over one transport: `client.vfms`.

    A vFM's status is a mapping: `name`, `backbone`, `status`, `version`, `weight`, `limits`, `slo`, `head` or `heads`, `past`
    versions, and the `error` of a version that was refused. Methods that name a vFM raise `UnknownVfm`; all raise `Unavailable`.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def deploy(self, package: Deployable) -> dict[str, Any]:
        """Deploy a new vFM; return its status once it serves.

        `package`: a package, its folder or archive, or the spec of a vFM without files. Raises why it cannot serve:
        `PackageRejected`, `InvalidInput`, `Conflict` (the name is taken) or `NoWorker`.
        """
        return await self._transport.deploy(await asyncio.to_thread(as_package, package))

    async def count(self, match: str = "*") -> int:
        """Count the vFMs whose names match a pattern, as `team-a-*`."""
        return (await self._transport.page(match, 1, ""))[1]

    async def show(self, name: str) -> dict[str, Any]:
        """Return the status of a vFM."""
        return await self._transport.show(name)

    async def update(self, name: str, package: Deployable | None = None, **change: Any) -> dict[str, Any]:
        """Change a vFM while it serves; return its status.

        `change`: `weight`, `limits`, `slo` (mappings or specs), which take effect at once. A `package` becomes the new version as
        soon as every worker has accepted it, and this returns then. Raises `InvalidInput`, `PackageRejected` or `Conflict`.
        """
        status = await self._transport.update(name, parse(VfmChange, change)) if change or package is None else {}
        if package is not None:
            status = await self._transport.offer(name, await asyncio.to_thread(as_package, package))
        return status

    async def roll_back(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Serve an earlier version again: the last one before, or `version`, one of `show(name)["past"]`; return the status."""
        return await self._transport.roll_back(name, version)

    async def remove(self, name: str) -> None:
        """Remove a vFM: it is closed at once and drained; return when nothing of it is left."""
        await self._transport.remove(name)

    async def prune(self) -> list[str]:
        """Delete artifacts that no vFM serves, has on offer or could be rolled back to; return their versions."""
        return await self._transport.prune()

    async def list(self, match: str = "*", limit: int | None = None) -> list[dict[str, Any]]:
        """List vFMs by name, those that match a pattern (`team-a-*`): the status of each; all of them, or the first `limit`."""
        found: list[dict[str, Any]] = []
        while limit is None or len(found) < limit:
            wanted = _PAGE if limit is None else min(_PAGE, limit - len(found))
            page, _ = await self._transport.page(match, wanted, found[-1]["name"] if found else "")
            found += page
            if len(page) < wanted:
                break
        return found


class Vfms:
    """The vFMs of a fleet, for code without an event loop: `client.vfms`. See `AsyncVfms` for a vFM's status and for errors."""

    def __init__(self, vfms: AsyncVfms, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._vfms = vfms
        self._run = run

    def deploy(self, package: Deployable) -> dict[str, Any]:
        """Deploy a package, its folder or archive, or a spec; return its status once it serves. See `AsyncVfms.deploy`."""
        return self._run(self._vfms.deploy(package))  # type: ignore[no-any-return]

    def count(self, match: str = "*") -> int:
        """Count the vFMs whose names match a pattern, as `team-a-*`."""
        return self._run(self._vfms.count(match))  # type: ignore[no-any-return]

    def show(self, name: str) -> dict[str, Any]:
        """Return the status of a vFM."""
        return self._run(self._vfms.show(name))  # type: ignore[no-any-return]

    def update(self, name: str, package: Deployable | None = None, **change: Any) -> dict[str, Any]:
        """Change `weight`, `limits` or `slo` at once, or offer a `package` as new version. See `AsyncVfms.update`."""
        return self._run(self._vfms.update(name, package, **change))  # type: ignore[no-any-return]

    def roll_back(self, name: str, version: str | None = None) -> dict[str, Any]:
        """Serve an earlier version again: the last one before, or `version`. See `AsyncVfms.roll_back`."""
        return self._run(self._vfms.roll_back(name, version))  # type: ignore[no-any-return]

    def remove(self, name: str) -> None:
        """Remove a vFM: it is closed at once and drained; return when nothing of it is left."""
        self._run(self._vfms.remove(name))

    def prune(self) -> list[str]:
        """Delete artifacts that no vFM needs; return their versions. See `AsyncVfms.prune`."""
        return self._run(self._vfms.prune())  # type: ignore[no-any-return]

    def list(self, match: str = "*", limit: int | None = None) -> list[dict[str, Any]]:
        """List the status of vFMs by name, those that match a pattern; all of them, or the first `limit`."""
        return self._run(self._vfms.list(match, limit))  # type: ignore[no-any-return]
