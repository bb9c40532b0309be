"""The fleet of a storm: one server, workers and gateways, each behind a TCP proxy of its own, and whoever ended by itself."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from benchmarks.fleet import artifact_folder, write_fleet
from benchmarks.processes import start_module
from benchmarks.storm_server import administrator
from fmplex_broker.errors import Unavailable
from fmplex_broker.streams.embedded import EmbeddedServer, free_port
from fmplex_broker.streams.keys import Keys
from tests.support.fleets import worker_ids
from tests.support.proxy import FaultProxy

SDK = "sdk"  # callers straight to the streams: this process
LEASE_S = 2.0
_START_S, _END_S = 120.0, 45.0
_WATCH_S = 0.1


class Member:
    """One process: `python -m module … --broker URL`, its proxy's URL. `listens`: the port that it serves on, if it does."""

    def __init__(self, name: str, command: Sequence[str], proxy: FaultProxy, log: Path, listens: int | None) -> None:
        self.name = name
        self._command = command
        self._proxy = proxy
        self._log = log
        self._listens = listens
        self._skip = 0  # of the log: what earlier processes of this name have said
        self._process: subprocess.Popen[bytes] | None = None
        self._told_to_end = False

    @property
    def pid(self) -> int:
        """Id of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, once more if it has ended."""
        self._skip = self._log.stat().st_size if self._log.exists() else 0
        self._told_to_end = False
        with self._log.open("ab") as log:
            self._process = start_module(*self._command, "--broker", self._proxy.url, stdout=log, stderr=log)

    def words(self) -> str:
        """Return what the process has written since it was started."""
        return self._log.read_bytes()[self._skip :].decode(errors="replace")

    async def serves(self) -> bool:
        """Tell whether it has begun to serve: a worker holds a lease, a gateway listens."""
        if self._listens is None:
            return bool(worker_ids(self.words()))
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._listens)
        except OSError:
            return False
        writer.close()
        return True

    def ended_by_itself(self) -> str | None:
        """Say how it ended if nobody had told it to; None while it runs."""
        if self._process is None or self._told_to_end or self._process.poll() is None:
            return None
        return f"{self.name} ended with status {self._process.returncode}: {self.words()[-1500:]}"

    def send(self, what: signal.Signals) -> None:
        """Send a signal that does not end it (SIGSTOP, SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(what)

    async def end(self, how: signal.Signals) -> str | None:
        """End it by a signal and wait for that. Returns what was wrong: too slow, or another status than the signal's or 0."""
        assert self._process is not None
        if words := self.ended_by_itself():
            return words
        self._told_to_end = True
        self._process.send_signal(how)
        try:
            status = await asyncio.to_thread(self._process.wait, _END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.name} had not ended {_END_S:.0f} s after {how.name}: {self.words()[-1500:]}"
        # A gateway's uvicorn ends in order and then dies of the signal, as shells like it.
        in_order = (0,) if self._listens is None else (0, -signal.SIGTERM)
        if how == signal.SIGTERM and status not in in_order:
            return f"{self.name} ended with status {status} after SIGTERM: {self.words()[-1500:]}"
        return None

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self._told_to_end = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Site:
    """Processes and proxies by name: `worker-0` …, `gateway-0` …; the SDK's callers have a proxy too. Use as an async context
    manager: everything serves once it is entered. `ended`: who has ended by itself, in words; they are started again."""

    def __init__(self, folder: Path, backbone: Mapping[str, Any], workers: int, gateways: int) -> None:
        self.server = EmbeddedServer(folder / "broker")
        self.workers = [f"worker-{i}" for i in range(workers)]
        self.gateways = [f"gateway-{i}" for i in range(gateways)]
        self.proxies = {name: FaultProxy(self.server.port) for name in (*self.workers, *self.gateways, SDK)}
        self.urls: dict[str, str] = {}  # of the gateways
        self.members: dict[str, Member] = {}
        self.ended: list[str] = []
        self._leases = Keys(str(backbone["name"])).leases
        self._stack = AsyncExitStack()
        worker = {"device": "cpu", "threads": 1, "lease_ms": round(LEASE_S * 1000)}
        tables = {"backbone": backbone, "worker": worker}
        config = write_fleet(folder / "fleet.toml", tables, artifacts=artifact_folder(folder))
        for name in self.workers:
            self._add(folder, name, ["fmplex_worker", "--config", str(config)])
        for name in self.gateways:
            port = free_port()
            self.urls[name] = f"http://127.0.0.1:{port}"
            at = ["--host", "127.0.0.1", "--port", str(port)]
            self._add(folder, name, ["fmplex_gateway", "--config", str(config), *at], port)

    def _add(self, folder: Path, name: str, command: list[str], listens: int | None = None) -> None:
        self.members[name] = Member(name, command, self.proxies[name], folder / f"{name}.log", listens)

    async def __aenter__(self) -> Self:
        try:
            self._stack.callback(self.server.stop)
            await asyncio.to_thread(self.server.start)
            for proxy in self.proxies.values():
                await self._stack.enter_async_context(proxy)
            for member in self.members.values():
                self._stack.callback(member.kill)
                member.start()
            for name in self.members:
                await self.serving(name)
            watch = asyncio.create_task(self._watch())
            self._stack.push_async_callback(_cancel, watch)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def serving(self, name: str) -> None:
        """Wait until a process serves. Raises `Unavailable` with its last words if it does not."""
        end = time.monotonic() + _START_S
        while not await self.members[name].serves():
            if time.monotonic() > end:
                raise Unavailable(f"{name} did not serve within {_START_S:.0f} s: {self.members[name].words()[-1500:]}")
            await asyncio.sleep(0.05)

    async def heard(self, worker: str, since: float) -> None:
        """Wait until a worker has renewed its lease, or taken another, since a time (seconds, as of `time.time`). Raises
        `Unavailable` if it does not."""
        async with administrator(self.server) as admin:
            while True:
                lease_ms = await admin.zscore(self._leases, worker_ids(self.members[worker].words())[-1])
                if lease_ms and lease_ms / 1000 - LEASE_S > since:
                    return
                if time.time() > since + _START_S:
                    raise Unavailable(f"{worker} was not heard for {_START_S:.0f} s")
                await asyncio.sleep(0.05)

    async def end(self, name: str, how: signal.Signals) -> None:
        """End a process by a signal and start it again."""
        if words := await self.members[name].end(how):
            self.ended.append(words)
        self.members[name].start()

    async def close_in_order(self) -> None:
        """Tell everybody to end: gateways first, then workers. Notes who does not in order."""
        for group in (self.gateways, self.workers):
            ends: list[Awaitable[str | None]] = [self.members[name].end(signal.SIGTERM) for name in group]
            self.ended += [words for words in await asyncio.gather(*ends) if words]

    async def _watch(self) -> None:
        """Note who ends by itself, and start it again."""
        while True:
            for member in self.members.values():
                if words := member.ended_by_itself():
                    self.ended.append(words)
                    member.start()
            await asyncio.sleep(_WATCH_S)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
