"""From a package to a vFM that serves: first its files into the artifact store, then its offer to the workers."""

from __future__ import annotations

import asyncio

from fmplex_broker.errors import Conflict, InvalidInput
from fmplex_broker.packages.artifacts import ArtifactStore, open_artifact
from fmplex_broker.packages.checkpoints import CheckpointStore
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.versions import artifact_of, is_stale, stale_error
from fmplex_broker.streams.registry import Registry

_MIN_AGE_S = 3600.0


class Deployer:
    """Deploys packages, for a gateway and for a client beside the broker. Raises what `ArtifactStore` and `Registry` raise."""

    def __init__(self, registry: Registry, store: ArtifactStore) -> None:
        self._registry = registry
        self._store = store

    async def deploy(self, package: Package) -> VfmStatus:
        """Create a vFM from a package and wait until it serves; see `Registry.deploy`."""
        await asyncio.to_thread(self._store.put, package)
        return await self._registry.deploy(package.spec, package.digest)

    async def update(self, vfm: str, package: Package) -> VfmStatus:
        """Make a package the version that a vFM serves; see `Registry.offer`."""
        await asyncio.to_thread(self._store.put, package)
        return await self._registry.offer(vfm, package.spec, package.digest)

    async def roll_back(self, vfm: str, version: str | None = None) -> VfmStatus:
        """Serve a version that served before: by default the last one. Raises `Conflict` when there is none, `InvalidInput`, and
        `StaleVersion` for one that served on other weights than the fleet hosts now."""
        now = await self._registry.show(vfm)
        past = [p.version for p in now.past if p.version != now.version]
        if not past:
            raise Conflict(f"vFM {vfm!r} has served no other version")
        wanted = version or next((v for v in past if not is_stale(v, now.hosted)), past[0])
        if wanted not in past:
            raise InvalidInput(f"{vfm!r} can be rolled back to {', '.join(past)}, not to {wanted!r}", field="version")
        if is_stale(wanted, now.hosted):
            raise stale_error(vfm, wanted, now.hosted)
        artifact = artifact_of(wanted)
        blob = await asyncio.to_thread(self._store.get, artifact)
        package = await asyncio.to_thread(open_artifact, memoryview(blob), artifact)
        # The artifact may have been brought by another vFM with the same content.
        return await self._registry.offer(vfm, package.spec.model_copy(update={"name": vfm}), artifact)

    async def prune(self, older_than_s: float = _MIN_AGE_S) -> list[str]:
        """Delete artifacts that no vFM refers to any more; returns their digests. Checkpoints go whose tuning jobs have been
        forgotten."""
        checkpoints = CheckpointStore(self._store.url)
        jobs = await asyncio.to_thread(checkpoints.jobs)  # first: there is a record before there is a checkpoint
        for job in set(jobs) - await self._registry.tuning(jobs):
            await asyncio.to_thread(checkpoints.forget, job)
        used = await self._registry.artifacts()
        return await asyncio.to_thread(self._store.prune, used, older_than_s)
