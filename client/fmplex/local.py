"""A whole fleet on this machine: broker, workers and gateway as child processes. For `fmplex up`, the demo and tests."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from fmplex_broker.errors import Conflict, Unavailable
from fmplex_broker.specs.fleet import FleetSpec, load_fleet
from fmplex_broker.streams.embedded import EmbeddedServer, free_port

STATE_FILE = Path(".fmplex") / "up.json"
_START_S = 120.0
_STOP_S = 40.0
_MIN_UPTIME_S = 30.0  # a process that ends sooner after its start would end again


class LocalFleet:
    """The processes of one fleet on this machine, as the fleet file `config` describes it.

    `workers`: how many worker processes. `port`: the gateway's, None: as the file says, 0: a free one. `data`: where the embedded
    broker keeps its data and the roles their logs. Use as a context manager, or call `start` and `stop`. Raises `InvalidInput`
    for a fleet file that is wrong.
    """

    def __init__(
        self, config: Path, *, workers: int = 1, port: int | None = None, data: Path = Path(".fmplex")
    ) -> None:
        self.config = config.resolve()
        self.spec: FleetSpec = load_fleet(config)
        self.data = data.resolve()
        self._workers = workers
        wanted = self.spec.gateway.port if port is None else port
        self.gateway_url = f"http://{self.spec.gateway.host}:{wanted or free_port()}"
        self._server = EmbeddedServer(self.data / "broker") if self.spec.broker == "embedded" else None
        self.broker_url = self._server.url if self._server else self.spec.broker
        # Unless the file says where, beside the embedded broker's data: both go and come together.
        named = "artifacts" in self.spec.model_fields_set
        self.artifacts = self.spec.artifacts if named else str(self.data / "artifacts")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[list[str], float]] = {}  # and when they were run last
        self._lock: IO[str] | None = None

    def start(self, on_step: Callable[[str], None] = lambda _: None) -> LocalFleet:
        """Start everything and wait until it can serve; `on_step` is told what is being done.

        Raises `Unavailable` with the log of what did not start, and `Conflict` when another fleet uses the same data folder.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        self._lock = (self.data / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(
                f"another fleet runs on {self.data}; stop it, or give this one another --data folder"
            ) from None
        try:
            if self._server is not None:
                on_step("starting the embedded broker")
                self._server.start()
            for i in range(self._workers):
                self.start_worker(f"worker-{i}")
            port = self.gateway_url.rpartition(":")[2]
            self._spawn("gateway", "fmplex_gateway", "--port", port)
            on_step(f"loading backbone {self.spec.backbone.name}")
            self._wait(lambda: self._ready() >= self._workers, "the fleet")
        except BaseException:
            self.stop()
            raise
        return self

    def start_worker(self, name: str) -> subprocess.Popen[bytes]:
        """Start one more worker on the same streams."""
        return self._spawn(name, "fmplex_worker")

    def _spawn(self, name: str, module: str, *args: str) -> subprocess.Popen[bytes]:
        return self._run(name, [sys.executable, "-m", module, "--config", str(self.config), *args], "wb")

    def _run(self, name: str, command: list[str], mode: str) -> subprocess.Popen[bytes]:
        # By the environment: a URL may hold a password, and everybody can read a command line.
        environment = {**os.environ, "FMPLEX_BROKER": self.broker_url, "FMPLEX_ARTIFACTS": self.artifacts}
        with (self.data / f"{name}.log").open(mode) as log:
            # A session of its own: Ctrl-C reaches `fmplex up` alone, which then stops its children in order.
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.processes[name] = process
        self._commands[name] = command, time.monotonic()
        return process

    def revive(self, name: str) -> bool:
        """Start a process that has ended once more; return False if it ended too soon after its start for that."""
        command, begun = self._commands[name]
        if time.monotonic() - begun < _MIN_UPTIME_S:
            return False
        self._run(name, command, "ab")
        return True

    def exit_reason(self, name: str) -> str:
        """Say how a process ended."""
        code = self.processes[name].returncode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def log(self, name: str) -> str:
        """Return the end of a process's log, at most 3,000 characters."""
        path = self.data / f"{name}.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def dead(self) -> list[str]:
        """List the names of processes that have ended."""
        return [name for name, process in self.processes.items() if process.poll() is not None]

    def _ready(self) -> int:
        """Count the workers that the gateway sees alive."""
        try:
            response = httpx.get(f"{self.gateway_url}/readyz", timeout=2.0)
        except httpx.HTTPError:
            return 0
        return int(response.json()["workers"].get(self.spec.backbone.name, 0)) if response.is_success else 0

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _START_S
        while True:
            for name in self.dead():
                raise Unavailable(f"{name} ended while {what} was starting:\n{self.log(name)}")
            if condition():
                return
            if time.monotonic() > end:
                raise Unavailable(f"{what} was not ready within {_START_S:.0f} s; see the logs in {self.data}")
            time.sleep(0.05)

    def write_state(self) -> None:
        """Write the fleet's addresses to `.fmplex/up.json`, where the other commands find them."""
        STATE_FILE.parent.mkdir(exist_ok=True)
        state = {
            "gateway": self.gateway_url, "broker": self.broker_url, "artifacts": self.artifacts, "pid": os.getpid()
        }  # fmt: skip
        STATE_FILE.touch(mode=0o600)  # the broker's URL may hold a password
        STATE_FILE.chmod(0o600)
        STATE_FILE.write_text(json.dumps(state))

    def stop(self) -> None:
        """Stop the gateway (no new work), then the workers (they drain), then the broker."""
        gateway = [process for name, process in self.processes.items() if name == "gateway"]
        workers = [process for name, process in self.processes.items() if name != "gateway"]
        self.processes.clear()
        for group in (gateway, workers):
            _end(group)
        if self._server is not None:
            self._server.stop()
        if STATE_FILE.exists() and json.loads(STATE_FILE.read_text()).get("pid") == os.getpid():
            STATE_FILE.unlink()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> LocalFleet:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Terminate all at once, wait for each, kill those that do not end in time."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def without_password(url: str) -> str:
    """Return a broker's URL as it may be shown: its password hidden."""
    return re.sub(r"(://[^/@]*):[^/@]*@", r"\1:***@", url)


def running() -> dict[str, str]:
    """Read the addresses of the fleet that `fmplex up` runs from this folder: `gateway`, `broker`, `artifacts`; empty if none."""
    try:
        state: dict[str, str] = json.loads(STATE_FILE.read_text())
    except (OSError, ValueError):
        return {}
    return state
