"""Recording passes: a tracer says that it listens, workers tell it once a second what their passes contained.

Nobody traces: workers look at one key with their report, nothing else. A tracer that dies renews that key no more, so the
workers fall silent within `TRACING_TTL_MS`; what they told goes `KEPT_MS` later.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from fmplex_broker.streams.connection import Client, broker_errors
from fmplex_broker.streams.keys import Keys
from fmplex_broker.wire.passes import PassRecord, Told, decode_told, encode_told

TRACING_TTL_MS = 5_000
KEPT_MS = 10_000
_REPORTS = 1000  # a stream holds no more, should nobody read it
_PER_READ = 100


def tell(pipe: Client, keys: Keys, worker: str, passes: Sequence[PassRecord]) -> None:
    """Add a worker's report to a pipeline, also one without passes: it says that there were none."""
    pipe.xadd(keys.passes, {"p": encode_told(worker, passes)}, maxlen=_REPORTS, approximate=True)
    pipe.pexpire(keys.passes, KEPT_MS)


class Heard(NamedTuple):
    """A report, and when the server had it."""

    at_ms: int
    told: Told


class Tracer:
    """Listens to the workers of some backbones from the first `read` on; call it every second or more often. Any number of
    tracers may listen at the same time."""

    def __init__(self, redis: Client, backbones: Sequence[str]) -> None:
        self._redis = redis
        self._keys = [Keys(backbone) for backbone in backbones]
        self._last: dict[str, bytes] = {}

    async def now_ms(self) -> int:
        """Server time."""
        async with broker_errors():
            seconds, micros = await self._redis.time()
        return int(seconds * 1000 + micros // 1000)

    async def read(self) -> list[Heard]:
        """What workers have told since the last call; says that we go on listening. Raises `BrokerUnavailable`."""
        old = await self.now_ms() - KEPT_MS
        heard: list[Heard] = []
        for keys in self._keys:
            if keys.passes not in self._last:
                self._last[keys.passes] = await self._newest(keys)
            async with broker_errors():
                pipe = self._redis.pipeline(transaction=False)
                pipe.set(keys.tracing, b"1", px=TRACING_TTL_MS)
                pipe.xread({keys.passes: self._last[keys.passes]}, count=_PER_READ)
                pipe.xtrim(keys.passes, minid=str(old), approximate=False)
                _, got, _ = await pipe.execute()
            for entry, fields in got[0][1] if got else []:
                self._last[keys.passes] = entry
                with suppress(ValueError):  # from a worker of another version
                    heard.append(Heard(int(entry.partition(b"-")[0]), decode_told(fields[b"p"])))
        return heard

    async def _newest(self, keys: Keys) -> bytes:
        """The last report to an earlier tracer; we want what comes after it."""
        async with broker_errors():
            entries = await self._redis.xrevrange(keys.passes, count=1)
        return bytes(entries[0][0]) if entries else b"0-0"
