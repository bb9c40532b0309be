"""Real worker processes for the benchmarks: started from a fleet file, pinned to cores, frozen while others are measured."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from fmplex import AsyncClient, VfmSpec
from fmplex_broker.streams.registry import Registry

_START_S = 300.0
_NICE = -15
LEASE_MS = 3_600_000  # a frozen worker must not be taken for dead
_IDLE_PERCENT = 20.0


def fleet_file(
    folder: Path, backbone: str, model: Path | str, *, pass_units: int, threads: int, window_passes: int = 3
) -> Path:
    """A fleet file for one backbone. All of a folder share one artifact store; see `open_client`."""
    path = folder / f"{backbone}.toml"
    path.write_text(
        f"artifacts = {json.dumps(_artifacts(folder))}\n"
        f'[backbone]\nname = "{backbone}"\nmodel = {json.dumps(str(model))}\npass_units = {pass_units}\n'
        f'[worker]\ndevice = "cpu"\nthreads = {threads}\nlease_ms = {LEASE_MS}\nwindow_passes = {window_passes}\n'
    )
    return path


def open_client(broker_url: str, folder: Path) -> AsyncClient:
    """A client straight to the streams that can deploy to the fleets of `folder`."""
    return AsyncClient(broker_url, artifacts=_artifacts(folder))


def _artifacts(folder: Path) -> str:
    return str(folder / "artifacts")


async def deploy(client: AsyncClient, packages: Iterable[Path | VfmSpec]) -> list[str]:
    """Deploy packages, or specs of vFMs without files; returns their names."""
    return [str((await client.vfms.deploy(package))["name"]) for package in packages]


def cores() -> list[int]:
    return sorted(psutil.Process().cpu_affinity() or [])


def pin(pid: int, to: Sequence[int]) -> None:
    """Keep every thread of a process, and those it will start, on some cores, ahead of the rest of the machine.

    Ahead, where the system allows it: beside other work many processes would get many shares of a core, and one process one.
    """
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208
        os.sched_setaffinity(thread, to)
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, thread, _NICE)
    # Each session is an autogroup with a share of its own, in which niceness only ranks its members.
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(_NICE))


class Workers:
    """The worker processes of one way to serve. Use as a context manager, or `stop` them."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self._folder = folder
        self._url = broker_url
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, config: Path, module: str = "fmplex_worker", *args: str) -> None:
        """One more worker, of the backbone that gave the fleet file its name."""
        command = [sys.executable, "-m", module, "--config", str(config), "--broker", self._url, *args]
        with (self._folder / f"{config.stem}.log").open("wb") as log:
            self._started[config.stem] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    async def ready(self, registry: Registry) -> None:
        """Wait until every worker has its lease. Raises `RuntimeError` with the last words of one that has ended."""
        end = time.monotonic() + _START_S
        for backbone, process in self._started.items():
            while not await registry.live_workers(backbone):
                if process.poll() is not None or time.monotonic() > end:
                    words = (self._folder / f"{backbone}.log").read_text()[-2000:]
                    raise RuntimeError(f"the worker of {backbone} did not start:\n{words}")
                time.sleep(0.1)  # noqa: ASYNC251  # nothing else is to do

    def pin(self, to: Sequence[int]) -> None:
        for process in self._started.values():
            pin(process.pid, to)

    async def settled(self) -> None:
        """Until the workers have nothing left to do from their start (memory for texts is touched in the background)."""
        for process in self._started.values():
            seen = psutil.Process(process.pid)
            seen.cpu_percent()
            await asyncio.sleep(1)
            while seen.cpu_percent() > _IDLE_PERCENT:  # noqa: ASYNC110
                await asyncio.sleep(1)

    def freeze(self) -> None:
        """SIGSTOP: an idle worker still beats and reports, which would disturb whoever is measured."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, what: signal.Signals) -> None:
        for process in self._started.values():
            process.send_signal(what)

    def unique_bytes(self) -> int:
        """USS, summed: what would be free if these processes were gone."""
        return sum(int(psutil.Process(p.pid).memory_full_info().uss) for p in self._started.values())

    def cpu_seconds(self) -> float:
        """Processor time that these processes have used, theirs and the kernel's for them."""
        return sum(sum(psutil.Process(p.pid).cpu_times()[:2]) for p in self._started.values())

    def stop(self) -> None:
        self.thaw()
        for process in self._started.values():
            process.terminate()
        for process in self._started.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._started.clear()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
