"""Recording passes: a tracer asks for them, workers report once a second what their passes contained.

While nobody traces, workers read one key with their statistics, nothing else. A tracer that dies renews that key no more, so
the workers fall silent within `TRACING_TTL_MS`; what they reported goes `KEPT_MS` later.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from fmplex_broker.streams.connection import Client, broker_errors
from fmplex_broker.streams.keys import Keys
from fmplex_broker.wire.passes import PassRecord, PassReport, decode_pass_report, encode_pass_report

TRACING_TTL_MS = 5_000
KEPT_MS = 10_000
_REPORTS = 1000  # a stream holds no more, should nobody read it
_PER_READ = 100


def add_report(pipe: Client, keys: Keys, worker: str, passes: Sequence[PassRecord]) -> None:
    """Add a worker's report to a pipeline, also one without passes: it says that there were none."""
    pipe.xadd(keys.passes, {"p": encode_pass_report(worker, passes)}, maxlen=_REPORTS, approximate=True)
    pipe.pexpire(keys.passes, KEPT_MS)


class ReceivedReport(NamedTuple):
    """A report, and when the server had it (ms)."""

    at_ms: int
    report: PassReport


class Tracer:
    """Listens to the workers of some backbones from the first `read` on; call it every second or more often. Any number of
    tracers may listen at the same time."""

    def __init__(self, redis: Client, backbones: Sequence[str]) -> None:
        self._redis = redis
        self._keys = [Keys(backbone) for backbone in backbones]
        self._last: dict[str, bytes] = {}

    async def now_ms(self) -> int:
        """Return the server's time in ms. Raises `BrokerUnavailable`."""
        async with broker_errors():
            seconds, micros = await self._redis.time()
        return int(seconds * 1000 + micros // 1000)

    async def read(self) -> list[ReceivedReport]:
        """Return what workers have reported since the last call, and renew the request for it. Raises `BrokerUnavailable`."""
        old = await self.now_ms() - KEPT_MS
        reports: list[ReceivedReport] = []
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
                    reports.append(ReceivedReport(int(entry.partition(b"-")[0]), decode_pass_report(fields[b"p"])))
        return reports

    async def _newest(self, keys: Keys) -> bytes:
        """Return the id of the last report to an earlier tracer; we want what comes after it."""
        async with broker_errors():
            entries = await self._redis.xrevrange(keys.passes, count=1)
        return bytes(entries[0][0]) if entries else b"0-0"
