"""Look into a broker: what is queued, who holds a lease, which keys would stay for ever."""

from __future__ import annotations

import re

import redis
import redis.asyncio as aioredis

from fmplex_broker.streams.keys import REGISTRY_BACKBONES, REGISTRY_TUNES, REGISTRY_VFMS, Keys
from fmplex_broker.wire.messages import CLASSES, Flow

# "Only q, ready, back, vfms, wake, leases, held, control, offers, tunes may lack a TTL", and the fleet-wide registry; and a
# tuning job until it has ended.
PERMANENT = re.compile(
    r"\{[^}]*\}:(q:|ready:|back$|vfms$|wake$|leases$|held:|control$|offers$|tunes$|tunes:)"
    r"|\{batches\}:(files$|files:|files-expiring$|files-going$|holders:|batches-open$)"
)
FLEET_WIDE = {REGISTRY_BACKBONES, REGISTRY_VFMS}


class Broker:
    """A look into the broker, for asserting what is queued."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._keys = Keys("minilm")

    def depth(self, vfm: str) -> int:
        """Count the jobs of the vFM that have no reply yet."""
        return sum(int(self._redis.xlen(self._keys.queue(Flow(vfm, cls)))) for cls in CLASSES)

    def replies(self, inbox: str) -> int:
        """Count the replies that a reply inbox has ever been sent, whether they were read or not."""
        key = self._keys.inbox(inbox)
        return int(self._redis.xinfo_stream(key)["entries-added"]) if self._redis.exists(key) else 0

    def workers(self) -> set[str]:
        """Return the ids of workers that hold a lease, live or not."""
        return {name.decode() for name in self._redis.zrange(self._keys.leases, 0, -1)}

    def traces(self, vfm: str) -> list[str]:
        """List permanent keys and fields that still speak of the vFM."""
        keys = [k.decode() for k in self._redis.scan_iter(f"*:{vfm}") if self._redis.ttl(k) < 0]
        fields = [f.decode() for f in self._redis.hkeys(self._keys.vfms)]
        return keys + [f for f in fields if f == vfm or f.startswith(f"{vfm}:")]

    def close(self) -> None:
        self._redis.close()


async def keys_without_ttl(redis: aioredis.Redis) -> list[str]:
    """List keys that would stay for ever and are not declared permanent."""
    names = [key.decode() async for key in redis.scan_iter(count=1000)]
    suspects = [name for name in names if name not in FLEET_WIDE and not PERMANENT.match(name)]
    return [name for name in suspects if await redis.pttl(name) == -1 and not await _open_tune(redis, name)]


async def _open_tune(redis: aioredis.Redis, name: str) -> bool:
    """Tell whether a key belongs to a tuning job that has not ended, or is the list of an owner's."""
    if name.startswith(REGISTRY_TUNES):
        return True
    found = re.fullmatch(r"(\{[^}]*\}:tune:[^:]+)(:events)?", name)
    ended = {b"succeeded", b"failed", b"cancelled", None}
    return found is not None and await redis.hget(found[1], "status") not in ended
