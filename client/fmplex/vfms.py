"""Managing the vFMs of a fleet: `client.vfms`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmplex.loop_thread import LoopThread
from fmplex.transport import Transport
from fmplex_broker.packages.archive import open_package
from fmplex_broker.packages.package import Package, bare
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.vfm import VfmChange, VfmSpec
from fmplex_broker.specs.vfm_info import VfmInfo

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
    """The vFMs of a fleet: `client.vfms` of an `AsyncClient`, whose `transport` it asks for. A vFM is shown as a `VfmInfo`.

    Methods that name a vFM raise `UnknownVfm`; all raise `Unauthorized`, `Forbidden` or `Unavailable`.
    """

    def __init__(self, transport: Callable[[], Transport]) -> None:
        self._transport = transport

    async def deploy(self, package: Deployable) -> VfmInfo:
        """Deploy a new vFM; return it once it serves.

        `package`: a package, its folder or archive, or the spec of a vFM without files (`VfmSpec`, or a mapping as vfm.toml).
        Raises why it cannot serve: `PackageRejected`, `InvalidInput`, `Conflict` (the name is taken) or `NoWorker`. A vFM that
        is stale gets a new version for what the fleet hosts now.

            await client.vfms.deploy("vfms/spam")
            await client.vfms.deploy({"name": "embed", "backbone": "minilm", "head": {"kind": "embedding"}})
        """
        return await self._transport().deploy(await asyncio.to_thread(as_package, package))

    async def count(self, match: str = "*") -> int:
        """Count the vFMs whose names match a pattern, `match`, as `team-a-*`."""
        return (await self._transport().page(match, 1, ""))[1]

    async def show(self, name: str) -> VfmInfo:
        """Return the vFM called `name` as it is now."""
        return await self._transport().show(name)

    async def update(self, name: str, package: Deployable | None = None, **change: Any) -> VfmInfo:
        """Change the vFM called `name` while it serves; return it as it is then.

        `change`: `weight`, `limits`, `slo` (mappings or specs), which take effect at once; of limits and SLO, what is not named
        stays. A `package` becomes the new version as soon as every worker has accepted it, and this returns then. Raises
        `InvalidInput`, `PackageRejected` or `Conflict`.

            await client.vfms.update("spam", weight=4, limits={"max_pending": 100})
        """
        if package is None:
            return await self._transport().update(name, parse(VfmChange, change))
        if change:
            await self._transport().update(name, parse(VfmChange, change))
        return await self._transport().offer(name, await asyncio.to_thread(as_package, package))

    async def roll_back(self, name: str, version: str | None = None) -> VfmInfo:
        """Serve an earlier version of the vFM called `name` again; return the vFM once it does.

        `version`: one of those in `VfmInfo.past`; by default the last one before. Raises `Conflict` if there is none, and
        `InvalidInput` for another version.
        """
        return await self._transport().roll_back(name, version)

    async def remove(self, name: str) -> None:
        """Remove the vFM called `name`: it is closed at once and drained; return when nothing of it is left."""
        await self._transport().remove(name)

    async def prune(self) -> list[str]:
        """Delete artifacts, older than an hour, that no vFM serves, has on offer or could be rolled back to; return their
        versions."""
        return await self._transport().prune()

    async def list(self, match: str = "*", limit: int | None = None) -> list[VfmInfo]:
        """List vFMs by name: those whose names match a pattern, `match`, as `team-a-*`; all of them, or the first `limit`."""
        found: list[VfmInfo] = []
        while limit is None or len(found) < limit:
            wanted = _PAGE if limit is None else min(_PAGE, limit - len(found))
            page, _ = await self._transport().page(match, wanted, found[-1].name if found else "")
            found += page
            if len(page) < wanted:
                break
        return found


class Vfms:
    """The vFMs of a fleet, for code without an event loop: `client.vfms` of a `Client`. A vFM is shown as a `VfmInfo`.

    Methods that name a vFM raise `UnknownVfm`; all raise `Unauthorized`, `Forbidden` or `Unavailable`. `vfms`: those that it
    shows; `loop`: where it asks for them.
    """

    def __init__(self, vfms: AsyncVfms, loop: LoopThread) -> None:
        self._vfms = vfms
        self._loop = loop

    def deploy(self, package: Deployable) -> VfmInfo:
        """Deploy a new vFM; return it once it serves.

        `package`: a package, its folder or archive, or the spec of a vFM without files (`VfmSpec`, or a mapping as vfm.toml).
        Raises why it cannot serve: `PackageRejected`, `InvalidInput`, `Conflict` (the name is taken) or `NoWorker`. A vFM that
        is stale gets a new version for what the fleet hosts now.

            client.vfms.deploy("vfms/spam")
            client.vfms.deploy({"name": "embed", "backbone": "minilm", "head": {"kind": "embedding"}})
        """
        return self._loop.run(self._vfms.deploy(package))

    def count(self, match: str = "*") -> int:
        """Count the vFMs whose names match a pattern, `match`, as `team-a-*`."""
        return self._loop.run(self._vfms.count(match))

    def show(self, name: str) -> VfmInfo:
        """Return the vFM called `name` as it is now."""
        return self._loop.run(self._vfms.show(name))

    def update(self, name: str, package: Deployable | None = None, **change: Any) -> VfmInfo:
        """Change the vFM called `name` while it serves; return it as it is then.

        `change`: `weight`, `limits`, `slo` (mappings or specs), which take effect at once; of limits and SLO, what is not named
        stays. A `package` becomes the new version as soon as every worker has accepted it, and this returns then. Raises
        `InvalidInput`, `PackageRejected` or `Conflict`.

            client.vfms.update("spam", weight=4, limits={"max_pending": 100})
        """
        return self._loop.run(self._vfms.update(name, package, **change))

    def roll_back(self, name: str, version: str | None = None) -> VfmInfo:
        """Serve an earlier version of the vFM called `name` again; return the vFM once it does.

        `version`: one of those in `VfmInfo.past`; by default the last one before. Raises `Conflict` if there is none, and
        `InvalidInput` for another version.
        """
        return self._loop.run(self._vfms.roll_back(name, version))

    def remove(self, name: str) -> None:
        """Remove the vFM called `name`: it is closed at once and drained; return when nothing of it is left."""
        self._loop.run(self._vfms.remove(name))

    def prune(self) -> list[str]:
        """Delete artifacts, older than an hour, that no vFM serves, has on offer or could be rolled back to; return their
        versions."""
        return self._loop.run(self._vfms.prune())

    def list(self, match: str = "*", limit: int | None = None) -> list[VfmInfo]:
        """List vFMs by name: those whose names match a pattern, `match`, as `team-a-*`; all of them, or the first `limit`."""
        return self._loop.run(self._vfms.list(match, limit))
