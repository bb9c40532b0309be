"""The consuming side of one backbone's queues, for one incarnation of one worker."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fmplex_broker.errors import BrokerUnavailable, Poisoned
from fmplex_broker.specs.fingerprint import Fingerprint, refusal
from fmplex_broker.specs.fleet import BACKBONE_BYTES
from fmplex_broker.streams.batches import PER_CALL, cut, send_all
from fmplex_broker.streams.claims import CLAIM_FLOWS, CLAIM_ROOM, Claim, Claimed, Order, read_claim
from fmplex_broker.streams.connection import ANSWER_S, BLOCK_MS, BLOCKED_S, Arg, Client, Scripts, broker_errors
from fmplex_broker.streams.keys import Keys
from fmplex_broker.streams.payloads import fetch_payloads
from fmplex_broker.wire.messages import Flow, Reply, encode_reply

HERE_TTL_MS = 60_000
_NAMES = 1000  # a command
_BEAT_S = 0.6  # even with the shortest lease a beat has so long: the machine may be busy
_POISONED = encode_reply(
    Reply(error=Poisoned("the worker died every time it had this job in hand; it was put aside as a dead letter"))
)


@dataclass(frozen=True, slots=True)
class Beat:
    """Outcome of a beat. `now_ms`: server time; `changes`: counter that moves whenever any vFM of the backbone changes."""

    alive: bool
    now_ms: int
    changes: int


@dataclass(frozen=True, slots=True)
class ReapResult:
    """Outcome of a reaping. `victim`: whose lease had run out; `given_back` and `dead_letters` count its jobs.

    `idle`: nobody is dead; `wait`: this worker has not beaten for long enough to judge; `more`: reap again.
    """

    state: Literal["idle", "wait", "ok"]
    victim: str
    given_back: int
    dead_letters: int
    more: bool


class Signals(NamedTuple):
    """News from the streams `wake` and `control`. `woken`: there may be work; `cancelled`: jobs ("flow entry") whose callers gave
    up; `changed`: what the counter of changes became, and of which vFM."""

    woken: bool
    cancelled: list[str]
    changed: list[tuple[int, str]]


class Consumer:
    """Claims, settles and gives back jobs; holds the lease. A new incarnation of a worker is a new Consumer."""

    def __init__(
        self,
        redis: Client,
        scripts: Scripts,
        backbone: str,
        worker: str,
        *,
        lease_ms: int,
    ) -> None:
        self.keys = Keys(backbone)
        self.worker = worker
        self._backbone = backbone
        self._redis = redis
        self._scripts = scripts
        self._lease_ms = lease_ms
        # Time enough is left in the lease for another one, over another connection.
        self._beat_s = min(ANSWER_S, max(lease_ms / 3000, _BEAT_S))
        self._epoch = 1
        self._claims = 0  # sent
        self._answered = 0  # number of the last claim whose jobs are here
        self._seen = {self.keys.wake: "0-0", self.keys.control: "0-0"}

    async def _call(self, name: str, args: Sequence[Arg], within_s: float | None = None) -> Any:
        return await self._scripts(name, self.keys.vfms, args, within_s=within_s)

    # --- life ---

    async def join(self, hosts: Fingerprint, max_bytes: int = BACKBONE_BYTES) -> Beat:
        """Begin this incarnation: take a lease. `max_bytes`: of all jobs on the backbone, in the broker.

        Raises `Conflict` while live workers of this backbone host something else.
        """
        args: list[Arg] = [self.worker, self._lease_ms, hosts.digest, hosts.model_dump_json(), max_bytes]
        state, now, changes, live = await self._call("join", args)
        if state == b"other":
            raise refusal(self._backbone, hosts, Fingerprint.model_validate_json(live))
        return Beat(state == b"ok", int(now), int(changes))

    async def beat(self) -> Beat:
        """Renew the lease. Not alive: another worker has taken over, or the server lost its data."""
        state, now, changes = await self._call("beat", [self.worker, self._lease_ms], self._beat_s)
        return Beat(state == b"ok", int(now), int(changes))

    async def reap(self, steady_ms: int, *, max_attempts: int, budget: int = 256, victim: str = "") -> ReapResult:
        """Take over from one dead worker. `steady_ms`: how long this worker has beaten without a gap."""
        args: list[Arg] = [
            self.worker,
            steady_ms,
            self._lease_ms,
            max_attempts,
            budget,
            _POISONED,
            victim,
        ]
        state, who, given, dead, more = await self._call("reap", args, self._beat_s)
        return ReapResult(state.decode(), who.decode(), int(given), int(dead), bool(more))

    async def leave(self) -> None:
        """End this incarnation in order: give back what is still held, as if it had never been here, then the lease."""
        while (await self.reap(0, max_attempts=1_000_000, victim=self.worker)).more:
            pass

    # --- jobs ---

    async def claim(
        self,
        room: dict[str, int],
        per_flow: int = CLAIM_ROOM,
        *,
        order: Order = "fair",
        steal_ms: int = 0,
        strangers: bool = True,
        avoid: Collection[Flow] = (),
        preparing: Iterable[Claimed] = (),
    ) -> Claim:
        """Take up to `room[class]` jobs a class. After any failure of this call: `recover`.

        What was given back is taken first. Then "fair" goes by virtual time, so that jobs come in proportion to weight;
        "arrival" takes the oldest jobs of each class whatever the weights, exactly so while at most 256 flows of a class
        have any, and lists all that it has taken, of all classes, oldest first.

        vFMs that are resident on another live worker and not here (see `announce_resident`) are left to it until their oldest
        job has waited `steal_ms`; without `strangers`, only those that are resident here are looked at. Of the flows in `avoid`
        nothing is taken, nor of what was given back of them; nothing wakes the worker when they may be taken again.

        What is taken is marked as being prepared, but redelivered jobs are not; `preparing`: of earlier claims, still.
        """
        self._claims += 1
        number = self._claims
        args: list[Arg] = [self.worker, str(self._epoch), per_flow, CLAIM_FLOWS, steal_ms, int(strangers), order]
        args += [number, _lines(preparing), len(avoid), *(f"{flow.cls}:{flow.vfm}" for flow in avoid)]
        for cls, n in room.items():
            args += [cls, min(n, CLAIM_ROOM)]
        claim = read_claim(await self._call("claim", args), order)
        await fetch_payloads(self._redis, self.keys, claim.jobs)
        self._answered = number
        return claim

    async def announce_resident(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Say which vFMs have become resident here and which are no longer: a hint for claims, kept for `HERE_TTL_MS`."""
        key = self.keys.here(self.worker)
        async with broker_errors():
            pipe = self._redis.pipeline(transaction=False)
            for start in range(0, len(added), _NAMES):
                pipe.sadd(key, *added[start : start + _NAMES])
            for start in range(0, len(removed), _NAMES):
                pipe.srem(key, *removed[start : start + _NAMES])
            pipe.pexpire(key, HERE_TTL_MS)
            await pipe.execute()

    async def mark(self, jobs: Iterable[Claimed], *, preparing: bool = False, tuning: str = "") -> bool:
        """Record which jobs are about to run, or to be prepared without having been marked by their claim; `preparing`: whether
        what the last claims brought is being prepared still, and stays marked. `tuning`: the tuning job, if any, of which a unit
        is about to run: until the next mark a death is its fault alone. False: the lease is gone, nothing may run."""
        through = 0 if preparing else self._answered
        return bool(await self._call("mark", [self.worker, _lines(jobs), str(through), tuning]))

    async def loading(
        self,
        vfm: str,
        version: str,
        does: Literal["begin", "try", "insist", "end"],
        others: Iterable[tuple[str, str]] = (),
    ) -> tuple[int, str]:
        """Record that a version is about to be loaded, or no longer; `others` (vFM, version) are being loaded meanwhile.

        Return how many workers have lately died while they loaded it, and the worker to wait for, if any: it tries an offer that
        nobody has accepted yet, and only who insists does so beside it. -1 deaths, for
        who tries or insists: it is on offer no longer.
        """
        lines = "\n".join(f"{name} {loading}" for name, loading in others)
        deaths, trying = await self._call("loading", [self.worker, lines, vfm, version, does])
        return int(deaths), trying.decode()

    async def settle(self, done: Sequence[tuple[Claimed, bytes]]) -> list[bool]:
        """End jobs with their encoded replies, and charge their flows what they have `spent` and their vFMs' rates the `tokens`.
        False: not this worker's job any more, nothing was sent. Safe to repeat."""
        return [bool(got) for got in await send_all(self._settle, done, lambda row: len(row[1]))]

    async def _settle(self, done: Sequence[tuple[Claimed, bytes]]) -> list[bool]:
        rows: list[Arg] = []
        for job, payload in done:
            beyond = 0 if job.spent is None else f"{job.spent - job.units:.6g}"
            tokens = 0 if job.tokens is None else job.tokens - job.units
            rows += [job.address, job.entry, job.job, job.inbox, payload, job.stored, beyond, tokens]
        return [bool(n) for n in await self._call("settle", [self.worker, *rows])]

    async def send_chunks(self, chunks: Sequence[tuple[Claimed, bytes]]) -> list[bool]:
        """Send chunks of running jobs. False: not this worker's job any more. Not safe to repeat: the reader must know what it
        has seen."""
        out: list[bool] = []
        for batch in cut(chunks, lambda row: len(row[1])):
            args: list[Arg] = [self.worker]
            for job, payload in batch:
                args += [job.address, job.entry, job.job, job.inbox, payload]
            out += [bool(n) for n in await self._call("tell", args)]
        return out

    async def release(self, jobs: Sequence[Claimed]) -> int:
        """Give unstarted jobs back; returns how many were. Forget them first; on any error `recover`, never repeat."""
        given = 0
        for start in range(0, len(jobs), PER_CALL):
            args: list[Arg] = [self.worker, str(self._epoch)]
            for job in jobs[start : start + PER_CALL]:
                args += [job.address, job.entry]
            got = int(await self._call("release", args))
            if got < 0:
                # Another recovery of this worker is under way and may believe that these jobs are still known.
                raise BrokerUnavailable("a recovery has overtaken this release; recover again")
            given += got
        return given

    async def recover(self, known: Iterable[Claimed]) -> bool:
        """Give back what is pending here but not known, after a failed or cancelled claim or release. False: lease gone."""
        self._epoch += 1
        args: list[Arg] = [self.worker, str(self._epoch)]
        for job in known:
            args += [job.address, job.entry]
        return int(await self._call("recover", args)) >= 0

    async def listen(self) -> Signals:
        """Block (at most `BLOCK_MS`) for signals. Needs a connection of its own for as long as it blocks."""
        async with broker_errors(BLOCKED_S):
            got: Any = await self._redis.xread(dict(self._seen), block=BLOCK_MS, count=256)
        woken = False
        cancelled: list[str] = []
        changed: list[tuple[int, str]] = []
        for stream, entries in got or []:
            key = stream.decode()
            self._seen[key] = entries[-1][0].decode()
            woken = woken or key == self.keys.wake
            cancelled += [fields[b"cancel"].decode() for _, fields in entries if b"cancel" in fields]
            changed += [(int(f[b"changed"]), f[b"vfm"].decode()) for _, f in entries if b"changed" in f]
        return Signals(woken, cancelled, changed)


def _lines(jobs: Iterable[Claimed]) -> str:
    return "\n".join(f"{job.address} {job.entry}" for job in jobs)
