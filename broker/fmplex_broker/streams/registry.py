"""Changing the fleet-wide record of deployments, by compare-and-set on each vFM's generation."""

from __future__ import annotations

import asyncio
import json
import time

from fmplex_broker.errors import (
    Conflict,
    FmplexError,
    InvalidInput,
    NoWorker,
    Unavailable,
    UnknownVfm,
    VfmClosed,
    from_wire,
)
from fmplex_broker.specs.deployments import BackboneInfo, VfmStatus
from fmplex_broker.specs.versions import stale_error, version_of
from fmplex_broker.specs.vfm import VfmChange, VfmSpec
from fmplex_broker.streams.catalog import Catalog, unknown_vfm
from fmplex_broker.streams.connection import Arg, Client, Scripts, broker_errors
from fmplex_broker.streams.keys import REGISTRY_BACKBONES, REGISTRY_VFMS, Keys
from fmplex_broker.wire.messages import Reply, encode_reply

_POLL_S = 0.02
_NO_WORKER_S = 5.0  # a worker that restarts takes a moment


class Registry(Catalog):
    """Reads and changes deployments. A version's files are in the artifact store before it is offered here."""

    def __init__(self, redis: Client, scripts: Scripts) -> None:
        super().__init__(redis)
        self.scripts = scripts

    async def register_backbone(self, info: BackboneInfo) -> None:
        """Record a backbone that a worker hosts."""
        async with broker_errors():
            await self._redis.hset(REGISTRY_BACKBONES, info.name, info.model_dump_json())

    async def deploy(self, spec: VfmSpec, artifact: str, *, timeout_s: float = 60.0) -> VfmStatus:
        """Create a vFM and wait until every live worker of its backbone has accepted it; one of this name that is stale gets a
        new version instead, as by `offer`.

        Raises `Conflict` (the name is taken), `InvalidInput` (no such backbone), the worker's refusal (`PackageRejected`), or
        `Unavailable` when the workers did not answer in time (the vFM stays `validating` and serves as soon as they do).
        """
        version = await self._version(spec.backbone, artifact)
        if await self._is_stale(spec):
            return await self.offer(spec.name, spec, artifact, timeout_s=timeout_s)
        await self._take_name(spec)
        try:
            await self._propose(spec, version, expect=-1)
        except Conflict:
            raise
        except FmplexError:
            await self._drop_name(spec.name, spec.backbone)
            raise
        async with broker_errors():  # somebody who removed an earlier vFM of this name may have been slow to drop it
            await self._redis.hsetnx(REGISTRY_VFMS, spec.name, spec.backbone)
        return await self._await_verdict(spec, version, timeout_s)

    async def change(self, vfm: str, change: VfmChange) -> VfmStatus:
        """Change weight, limits or SLO, at once; what is not named stays. Raises `UnknownVfm`, `Conflict`, `VfmClosed`."""
        now = await self._serving(vfm)
        update = {k: v for k in ("weight", "limits", "slo") if (v := getattr(change, k)) is not None}
        for part in ("limits", "slo"):
            if part in update:
                named = {k: getattr(update[part], k) for k in update[part].model_fields_set}
                update[part] = getattr(now.spec, part).model_copy(update=named)
        if update:
            spec = now.spec.model_copy(update=update)
            args: list[Arg] = [vfm, now.generation, spec.model_dump_json(), *_terms(spec)]
            state, _ = await self.scripts("alter", Keys(now.backbone).vfms, args)
            self._check_state(state.decode(), vfm)
        return await self.show(vfm)

    async def offer(
        self, vfm: str, spec: VfmSpec, artifact: str, *, generation: int | None = None, timeout_s: float = 60.0
    ) -> VfmStatus:
        """Make an artifact what the vFM serves, once every live worker has accepted it; until then the old version serves.

        Operating values (weight, limits, SLO) are the operator's: those of `spec` are ignored. `generation`: the one that the
        vFM must still have; None: the present one. Raises as `deploy` and `change` do.
        """
        if spec.name != vfm:
            raise InvalidInput(f"the package is of vFM {spec.name!r}, not {vfm!r}", field="package")
        now = await self.show(vfm)
        if now.status not in ("serving", "stale"):
            raise _closed(now)
        if spec.backbone != now.backbone:
            raise InvalidInput(
                f"the package is for backbone {spec.backbone!r} and {vfm!r} lives on {now.backbone!r}; deploy it as "
                "another vFM",
                field="package",
            )
        version = await self._version(spec.backbone, artifact)
        if version == now.version:
            return now
        kept = {k: getattr(now.spec, k) for k in ("weight", "limits", "slo")}
        offered = spec.model_copy(update=kept)
        await self._propose(offered, version, expect=now.generation if generation is None else generation)
        return await self._await_verdict(offered, version, timeout_s)

    async def remove(self, vfm: str, *, drain_s: float = 10.0) -> None:
        """Close the vFM, let its jobs drain for `drain_s`, answer what is still waiting, drop its keys.

        Raises `UnknownVfm`; `Unavailable` when running jobs do not end (its worker is gone and nobody took over yet).
        """
        backbone = await self.find(vfm)
        answer = encode_reply(Reply(error=VfmClosed(f"vFM {vfm!r} was removed before this job ran")))
        start = time.monotonic()
        while True:
            waited = time.monotonic() - start
            mode = "drain" if waited < drain_s else "answer"
            state, left = await self.scripts("retire", Keys(backbone).vfms, [vfm, mode, 256, answer])
            if state == b"gone":
                break
            if waited > drain_s + 60:
                raise Unavailable(f"vFM {vfm!r} still has {int(left)} running jobs; try again when they have ended")
            await asyncio.sleep(_POLL_S)
        await self._drop_name(vfm, backbone)

    async def vote(self, backbone: str, vfm: str, version: str, worker: str, refusal: FmplexError | None = None) -> str:
        """Record a worker's verdict on an offered version (`worker` '': only count) and return the state after it: serving |
        waiting | rejected | gone. Raises the workers' refusal where one has rejected it and `worker` is ''."""
        error = json.dumps(refusal.to_wire()) if refusal else ""
        state, wire = await self.scripts("vote", Keys(backbone).vfms, [vfm, version, worker, error])
        if state == b"rejected" and not worker:
            raise from_wire(json.loads(wire))
        return str(state.decode())

    # --- inner ---

    async def _serving(self, vfm: str) -> VfmStatus:
        now = await self.show(vfm)
        if now.status == "stale":
            raise stale_error(vfm, now.version, now.hosted)
        if now.status != "serving":
            raise _closed(now)
        return now

    async def _version(self, backbone: str, artifact: str) -> str:
        """Return the version of an artifact on what the workers of a backbone host. Raises `InvalidInput`."""
        hosted = await self.hosted(backbone)
        if hosted is None:
            listed = ", ".join(await self.backbones()) or "none; start a worker first"
            raise InvalidInput(f"no worker has ever hosted backbone {backbone!r} (known: {listed})", field="backbone")
        return version_of(artifact, hosted.digest)

    async def _is_stale(self, spec: VfmSpec) -> bool:
        """Tell whether a vFM has the name and the backbone of `spec`, and is stale."""
        try:
            owner = await self.show(spec.name)
        except UnknownVfm:
            return False
        return owner.status == "stale" and owner.backbone == spec.backbone

    async def _take_name(self, spec: VfmSpec) -> None:
        async with broker_errors():
            if await self._redis.hsetnx(REGISTRY_VFMS, spec.name, spec.backbone):
                return
        try:
            owner = await self.show(spec.name)
        except UnknownVfm:
            # Left by somebody who died between two steps: nothing serves under it.
            async with broker_errors():
                await self._redis.hset(REGISTRY_VFMS, spec.name, spec.backbone)
            return
        if owner.status != "rejected" or owner.backbone != spec.backbone:
            raise _taken(spec.name)

    async def _drop_name(self, vfm: str, backbone: str) -> None:
        """Drop a vFM's name unless somebody has deployed another one under it meanwhile: names and vFMs do not change in one
        step."""
        async with broker_errors():
            await self._redis.hdel(REGISTRY_VFMS, vfm)
            if await self._redis.hexists(Keys(backbone).vfms, vfm):
                await self._redis.hsetnx(REGISTRY_VFMS, vfm, backbone)

    async def _propose(self, spec: VfmSpec, version: str, expect: int) -> None:
        args: list[Arg] = [spec.name, version, spec.model_dump_json(), expect, *_terms(spec)]
        state, _ = await self.scripts("propose", Keys(spec.backbone).vfms, args)
        self._check_state(state.decode(), spec.name)

    def _check_state(self, state: str, vfm: str) -> None:
        if state == "exists":
            raise _taken(vfm)
        if state == "unknown":
            raise unknown_vfm(vfm)
        if state == "stale":
            raise Conflict(f"vFM {vfm!r} was changed by somebody else meanwhile; look at it and try again")
        if state == "draining":
            raise VfmClosed(f"vFM {vfm!r} is being removed; try again when it is gone")

    async def _await_verdict(self, spec: VfmSpec, version: str, timeout_s: float) -> VfmStatus:
        start = checked = time.monotonic()
        while (state := await self.vote(spec.backbone, spec.name, version, "")) == "waiting":
            now = time.monotonic()
            late = now > start + timeout_s
            if late or now > checked + _NO_WORKER_S:
                checked = now
                if not await self.live_workers(spec.backbone):
                    raise NoWorker(
                        f"no live worker hosts {spec.backbone!r}; {spec.name!r} serves as soon as one starts"
                    )
            if late:
                raise Unavailable(f"not every worker has checked {spec.name!r} yet; it serves as soon as they have")
            await asyncio.sleep(_POLL_S)
        if state == "gone":
            raise Conflict(f"vFM {spec.name!r} was changed or removed by somebody else meanwhile")
        return await self.show(spec.name)


def _closed(now: VfmStatus) -> VfmClosed:
    return VfmClosed(f"vFM {now.name!r} is {now.status}; it can be changed while it is serving")


def _taken(vfm: str) -> Conflict:
    return Conflict(f"there is already a vFM {vfm!r}; offer this as its new version, or remove it first", field="name")


def _terms(spec: VfmSpec) -> list[float]:
    limits = spec.limits
    return [limits.max_pending, spec.weight, limits.rate or 0, limits.max_pending_bytes, *spec.slo.targets]
