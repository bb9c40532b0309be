"""Real worker processes for the benchmarks: started from a fleet file, pinned to cores, frozen while others are measured."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import start_module
from fmplex import AsyncClient, VfmSpec
from fmplex_broker.streams.registry import Registry

_START_S = 300.0
_NICE = -15
LEASE_MS = 3_600_000  # a frozen worker must not be taken for dead
_IDLE_PERCENT = 20.0


def write_fleet(path: Path, tables: Mapping[str, Mapping[str, Any]], **top: str) -> Path:
    """Write a fleet file: `top` stands above the tables; a mapping within a table is a table of its own."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for name, table in tables.items():
        lines += _toml(name, table)
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(name: str, table: Mapping[str, Any]) -> list[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    lines = [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items() if key not in inner)]
    for key, value in inner.items():
        lines += _toml(f"{name}.{key}", value)
    return lines


def fleet_file(
    folder: Path, backbone: str, model: Path | str, *, pass_units: int, max_tokens: int | None = None, **worker: Any
) -> Path:
    """Write a fleet file for one backbone, `worker` being what its table has beside the device (CPU), one thread, and a
    lease that outlasts a freeze. All of a folder share one artifact store; see `open_client`."""
    spec = {"name": backbone, "model": str(model), "pass_units": pass_units}
    if max_tokens is not None:
        spec["max_tokens"] = max_tokens
    table = {"device": "cpu", "threads": 1, "lease_ms": LEASE_MS} | worker
    return write_fleet(
        folder / f"{backbone}.toml", {"backbone": spec, "worker": table}, artifacts=artifact_folder(folder)
    )


def open_client(broker_url: str, folder: Path) -> AsyncClient:
    """Open a client straight to the streams that can deploy to the fleets of `folder`."""
    return AsyncClient(broker_url, artifacts=artifact_folder(folder))


def artifact_folder(folder: Path) -> str:
    """Return where the fleets of `folder` keep versions."""
    return str(folder / "artifacts")


async def deploy(client: AsyncClient, packages: Iterable[Path | VfmSpec]) -> list[str]:
    """Deploy packages, or specs of vFMs without files. Returns their names."""
    return [(await client.vfms.deploy(package)).name for package in packages]


def cores() -> list[int]:
    """Return the cores that this process may use."""
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
        """Start one more worker, of the backbone that gave the fleet file its name."""
        with (self._folder / f"{config.stem}.log").open("wb") as log:
            command = [module, "--config", str(config), "--broker", self._url, *args]
            self._started[config.stem] = start_module(*command, stdout=log, stderr=log)

    async def ready(self, registry: Registry) -> None:
        """Wait until every worker has its lease. Raises `RuntimeError` with the last words of one that has ended."""
        end = time.monotonic() + _START_S
        for backbone, process in self._started.items():
            while not await registry.live_workers(backbone):
                if process.poll() is not None or time.monotonic() > end:
                    words = (self._folder / f"{backbone}.log").read_text()[-2000:]
                    raise RuntimeError(f"the worker of {backbone} did not start:\n{words}")
                await asyncio.sleep(0.1)

    def pin(self, to: Sequence[int]) -> None:
        """Keep all of them on some cores; see the function `pin`."""
        for process in self._started.values():
            pin(process.pid, to)

    async def settled(self) -> None:
        """Wait until the workers have nothing left to do from their start (memory for texts is touched in the background)."""
        for process in self._started.values():
            seen = psutil.Process(process.pid)
            seen.cpu_percent()
            await asyncio.sleep(1)
            while seen.cpu_percent() > _IDLE_PERCENT:  # noqa: ASYNC110
                await asyncio.sleep(1)

    def freeze(self) -> None:
        """Stop them by SIGSTOP: an idle worker still beats and reports, which would disturb whoever is measured."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on; see `freeze`."""
        self._signal(signal.SIGCONT)

    def _signal(self, what: signal.Signals) -> None:
        for process in self._started.values():
            process.send_signal(what)

    def unique_bytes(self) -> int:
        """Sum their USS: bytes that would be free if these processes were gone."""
        return sum(int(psutil.Process(p.pid).memory_full_info().uss) for p in self._started.values())

    def cpu_seconds(self) -> float:
        """Sum the processor time that these processes have used, theirs and the kernel's for them."""
        return sum(sum(psutil.Process(p.pid).cpu_times()[:2]) for p in self._started.values())

    def stop(self) -> None:
        """Ask all to end, then kill who has not within 30 s."""
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
