"""From what a tuning job has learnt to a version that serves: once, however often it is tried."""

from __future__ import annotations

import asyncio

from fmplex_broker.errors import Conflict, UnknownVfm
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.tuning import Publish
from fmplex_broker.specs.versions import version_of
from fmplex_broker.streams.registry import Registry

_CANARY = "-canary"
_LONGEST_NAME = 128
_POLL_S = 0.2


def published_as(publish: Publish, job: str) -> str:
    """Return the name of the vFM that a job makes; of one that makes none its id. A canary has a name of its own beside the vFM
    that it is to replace."""
    if publish.vfm is None:
        return job
    return publish.vfm[: _LONGEST_NAME - len(_CANARY)] + _CANARY if publish.how == "canary" else publish.vfm


class Publisher:
    """Offers packages that are in the artifact store, on the weights that this worker hosts."""

    def __init__(self, registry: Registry, hosted: str) -> None:
        self._registry = registry
        self._hosted = hosted

    async def publish(self, publish: Publish, package: Package) -> tuple[str, str]:
        """Make a package what its vFM serves, unless it does or has done already: another worker that had the job may have ended
        just then. Returns name and version.

        Raises `UnknownVfm` (it was removed), `Conflict` (somebody has changed it meanwhile, or has taken the name), the workers'
        refusal, and `Unavailable`: it may be tried again.
        """
        name = package.spec.name
        version = version_of(package.digest, self._hosted)
        now = await self._find(name)
        while now is not None and now.candidate is not None and now.candidate[0] == version:
            await asyncio.sleep(_POLL_S)  # offered already
            now = await self._find(name)
        if now is not None and version in (now.version, *(past.version for past in now.past)):
            return name, version
        if publish.how == "canary" and publish.vfm is not None:
            await self._registry.show(publish.vfm)  # beside a vFM that was removed there is nothing to try
        if publish.how == "update":
            done = await self._registry.offer(name, package.spec, package.digest, generation=publish.generation)
        elif publish.how == "canary" and now is not None and now.status == "serving":
            done = await self._registry.offer(name, package.spec, package.digest, generation=now.generation)
        else:
            done = await self._registry.deploy(package.spec, package.digest)
        if done.version != version:
            raise Conflict(
                f"vFM {name!r} was changed by somebody else meanwhile; look at it, and deploy the checkpoint"
            )
        return name, version

    async def _find(self, name: str) -> VfmStatus | None:
        try:
            return await self._registry.show(name)
        except UnknownVfm:
            return None
