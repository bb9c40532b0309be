"""Reading the fleet-wide record of deployments: which backbones exist and which vFMs live on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from fmplex_broker.errors import InvalidInput, UnknownVfm
from fmplex_broker.specs.deployments import (
    STATUS_FIELDS,
    BackboneInfo,
    DeployedVfm,
    VfmStatus,
    parse_deployed,
    parse_hosted,
    parse_status,
)
from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.connection import Client, broker_errors
from fmplex_broker.streams.keys import HOSTED, REGISTRY_BACKBONES, REGISTRY_VFMS, Keys

_NAMES = 100  # a round trip; more would hold the event loop of whoever asks
_LONGEST_MATCH = 256  # characters


def unknown_vfm(vfm: str) -> UnknownVfm:
    """Make the error for a name that no vFM has."""
    return UnknownVfm(f"there is no vFM {vfm[:128]!r}; `fmplex vfms` lists them")


def _any(name: str) -> bool:
    return True


class Catalog:
    """Reads deployments. What it costs grows with what is asked for, not with what is registered."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis

    async def backbones(self) -> dict[str, BackboneInfo]:
        """Read all backbones that a worker has ever hosted, by name."""
        async with broker_errors():
            raw = await self._redis.hgetall(REGISTRY_BACKBONES)
        return {k.decode(): BackboneInfo.model_validate_json(v) for k, v in sorted(raw.items())}

    async def find(self, vfm: str) -> str:
        """Return the name of a vFM's backbone. Raises `UnknownVfm`."""
        if not vfm.isascii() or len(vfm) > 128:  # no such name can exist, and not every text can be sent to ask
            raise unknown_vfm(vfm)
        async with broker_errors():
            raw = await self._redis.hget(REGISTRY_VFMS, vfm)
        if raw is None:
            raise unknown_vfm(vfm)
        return str(raw.decode())

    async def show(self, vfm: str) -> VfmStatus:
        """Read a vFM's status. Raises `UnknownVfm`."""
        status = (await self.states(await self.find(vfm), [vfm]))[0]
        if status is None:
            raise unknown_vfm(vfm)
        return status

    async def states(self, backbone: str, names: Sequence[str]) -> list[VfmStatus | None]:
        """Read the statuses of vFMs of one backbone; None where there is none of that name."""
        out: list[VfmStatus | None] = []
        for start in range(0, len(names), _NAMES):
            part = names[start : start + _NAMES]
            fields = [name + suffix for name in part for suffix in STATUS_FIELDS]
            async with broker_errors():
                *raw, described = await self._redis.hmget(Keys(backbone).vfms, [*fields, HOSTED])
            hosted = (described or b"").partition(b"|")[0].decode()
            for i, name in enumerate(part):
                values = raw[i * len(STATUS_FIELDS) : (i + 1) * len(STATUS_FIELDS)]
                out.append(parse_status(name, backbone, *values, hosted=hosted) if values[0] is not None else None)
        return out

    async def hosted(self, backbone: str) -> Fingerprint | None:
        """Read what the workers of a backbone host, or hosted last; None if none has ever joined."""
        async with broker_errors():
            return parse_hosted(await self._redis.hget(Keys(backbone).vfms, HOSTED))

    async def deployed(self, backbone: str, names: Sequence[str]) -> dict[str, DeployedVfm | None]:
        """Read what workers need of vFMs of one backbone, by name; None where there is no such vFM."""
        out: dict[str, DeployedVfm | None] = {}
        for start in range(0, len(names), _NAMES):
            part = names[start : start + _NAMES]
            async with broker_errors():
                raw = await self._redis.hmget(Keys(backbone).vfms, [*part, *(f"{name}:next" for name in part)])
            for name, record, offered in zip(part, raw, raw[len(part) :], strict=False):
                out[name] = parse_deployed(record, offered) if record is not None else None
        return out

    async def offers(self, backbone: str) -> list[str]:
        """Return the names of vFMs of a backbone with a version that is being voted on, sorted."""
        async with broker_errors():
            raw = await self._redis.smembers(Keys(backbone).offers)
        return sorted(name.decode() for name in raw)

    async def page(
        self, match: str = "*", limit: int = 100, after: str = "", *, only: Callable[[str], bool] = _any
    ) -> tuple[list[VfmStatus], int]:
        """Read the first `limit` vFMs by name that match a pattern (`*`, `?`, `[…]`) and come after a name; count all that
        match. Those whose name `only` does not accept are not there. Raises `InvalidInput` for a pattern that is too long."""
        if len(match) > _LONGEST_MATCH:
            raise InvalidInput(f"match has {len(match)} characters, at most {_LONGEST_MATCH} are taken", field="match")
        async with broker_errors():
            raw = await self._redis.hgetall(REGISTRY_VFMS)
        named = ((k.decode(), v.decode()) for k, v in raw.items())
        matching = sorted((name, backbone) for name, backbone in named if fnmatchcase(name, match) and only(name))
        wanted = [(name, backbone) for name, backbone in matching if name > after][:limit]
        found: list[VfmStatus] = []
        for backbone in {b for _, b in wanted}:
            states = await self.states(backbone, [name for name, b in wanted if b == backbone])
            found += [status for status in states if status is not None]
        return sorted(found, key=lambda s: s.name), len(matching)

    async def every(self, *, only: Callable[[str], bool] = _any) -> list[VfmStatus]:
        """Read all vFMs by name, of those that `only` accepts. For ten thousand it takes a second; ask for a `page` where one
        will do."""
        return (await self.page(limit=sys.maxsize, only=only))[0]

    async def artifacts(self) -> set[str]:
        """Collect the artifacts of every version that any vFM serves, has on offer, or has served before."""
        used: set[str] = set()
        for s in await self.every():
            used |= {s.version, *(p.version for p in s.past), *([s.candidate[0]] if s.candidate else [])}
        return {artifact_of(version) for version in used - {""}}

    async def tuning(self, jobs: Sequence[str]) -> set[str]:
        """Return which of these ids are of tuning jobs that there is a record of, on whatever backbone."""
        found: set[str] = set()
        for backbone in await self.backbones():
            async with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
                for job in jobs:
                    pipe.exists(Keys(backbone).tune(job))
                found |= {job for job, there in zip(jobs, await pipe.execute(), strict=True) if there}
        return found

    async def live_workers(self, backbone: str) -> list[str]:
        """Return the ids of the workers whose lease has not expired on the server's clock."""
        async with broker_errors():
            seconds, micros = await self._redis.time()
            live = await self._redis.zrangebyscore(Keys(backbone).leases, f"({seconds * 1000 + micros // 1000}", "+inf")
        return [w.decode() for w in live]
