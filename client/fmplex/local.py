"""A whole fleet on this machine: broker, workers and gateway as child processes. For `fmplex up`, the demo and tests."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from fmplex.running import withdraw
from fmplex_broker.errors import Conflict, InvalidInput, Unavailable
from fmplex_broker.specs.fleet import FleetSpec, artifacts_of, load_fleet
from fmplex_broker.streams.embedded import EmbeddedServer

_START_S = 120.0
_STOP_S = 40.0
_BROKER = "broker"


class LocalFleet:
    """The processes of one fleet on this machine, as the fleet file `config` describes it.

    `workers`: how many worker processes for every backbone, or for those named; None: as the file says. `port`: the gateway's,
    None: as the file says, 0: a free one. `data`: where the embedded broker keeps its data and the roles their logs. Use as a
    context manager, or call `start` and `stop`. Raises `InvalidInput` for a fleet file that is wrong, or a backbone that is not
    in it.
    """

    def __init__(
        self,
        config: Path,
        *,
        workers: int | Mapping[str, int] | None = None,
        port: int | None = None,
        data: Path = Path(".fmplex"),
    ) -> None:
        self.config = config.resolve()
        self.spec: FleetSpec = load_fleet(config)
        self.data = data.resolve()
        self.workers = _worker_counts(self.spec, workers)
        self._port = self.spec.gateway.port if port is None else port
        self._listening: socket.socket | None = None
        self._server = EmbeddedServer(self.data / "broker") if self.spec.broker == "embedded" else None
        self.broker_url = self._server.url if self._server else self.spec.broker
        # Unless the file says where, beside the embedded broker's data: both go and come together.
        beside = self.spec.artifacts or str(self.data / "artifacts")
        self.artifacts = beside if self._server else artifacts_of(self.spec, self.broker_url)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}
        self._lock: IO[str] | None = None

    @property
    def gateway_url(self) -> str:
        """URL of the gateway; its port is known once the fleet has started."""
        host = self.spec.gateway.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    def start(self, on_step: Callable[[str], None] = lambda _: None) -> LocalFleet:
        """Start everything and wait until it can serve; `on_step` is told what is being done.

        Raises `Unavailable` with the log of what did not start, and `Conflict`, before anything is started, when another fleet
        uses the same data folder or the same port.
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
            # Held from now on, by this process too: nobody can take it between here and the gateway's start, or its next one.
            self._listening = _listen(self.spec.gateway.host, self._port)
            self._port = self._listening.getsockname()[1]
            if self._server is not None:
                on_step("starting the embedded broker")
                self._server.start()
            for backbone, count in self.workers.items():
                for i in range(count):
                    self.start_worker(f"worker-{i}" if len(self.workers) == 1 else f"worker-{backbone}-{i}", backbone)
            self._spawn("gateway", "fmplex_gateway", "--fd", str(self._listening.fileno()))
            on_step(f"loading {', '.join(self.workers)}")
            # One client: each of its own would read all certificates of authorities anew, beside workers that load.
            with httpx.Client(base_url=self.gateway_url, timeout=2.0) as http:
                self._wait(lambda: self._complete(http), "the fleet")
        except BaseException:
            self.stop()
            raise
        return self

    def start_worker(self, name: str, backbone: str | None = None) -> subprocess.Popen[bytes]:
        """Start one more worker of a backbone (None: of the only one) on the same streams; `name`: of the process."""
        return self._spawn(name, "fmplex_worker", "--backbone", self.spec.find(backbone).name)

    def _spawn(self, name: str, module: str, *args: str) -> subprocess.Popen[bytes]:
        return self._run(name, [sys.executable, "-m", module, "--config", str(self.config), *args], "wb")

    def _run(self, name: str, command: list[str], mode: str) -> subprocess.Popen[bytes]:
        # By the environment: a URL may hold a password, and everybody can read a command line.
        environment = {**os.environ, "FMPLEX_BROKER": self.broker_url, "FMPLEX_ARTIFACTS": self.artifacts}
        with (self.data / f"{name}.log").open(mode) as log:
            # A session of its own: Ctrl-C reaches `fmplex up` alone, which then stops its children in order.
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True,
                pass_fds=[self._listening.fileno()] if name == "gateway" and self._listening else (),
            )  # fmt: skip
        self.processes[name] = process
        self._commands[name] = command
        return process

    def revive(self, name: str) -> None:
        """Start a process that has ended once more. Raises `BrokerUnavailable` if it is the broker, and that does not start."""
        if name == _BROKER and self._server is not None:
            self._server.start()
        else:
            self._run(name, self._commands[name], "ab")

    def exit_reason(self, name: str) -> str:
        """Say how a process ended."""
        if name == _BROKER:
            return "has ended"
        code = self.processes[name].returncode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def log(self, name: str) -> str:
        """Return the end of a process's log, at most 3,000 characters."""
        path = self.data / (f"{name}/{name}.log" if name == _BROKER else f"{name}.log")
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def dead(self) -> list[str]:
        """List the names of processes that have ended, the embedded broker first."""
        broker = [_BROKER] if self._server is not None and self._server.has_died else []
        return broker + [name for name, process in self.processes.items() if process.poll() is not None]

    def _complete(self, http: httpx.Client) -> bool:
        """Tell whether the gateway sees as many workers of every backbone as were started."""
        try:
            live = http.get("/readyz").json().get("workers", {})
        except (httpx.HTTPError, ValueError):
            return False
        return all(live.get(backbone, 0) >= count for backbone, count in self.workers.items())

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

    def stop(self) -> None:
        """Stop the gateway (no new work), then the workers (they drain), then the broker."""
        gateway = [process for name, process in self.processes.items() if name == "gateway"]
        workers = [process for name, process in self.processes.items() if name != "gateway"]
        self.processes.clear()
        if self._listening is not None:
            self._listening.close()  # once the gateway has closed its own, callers are refused rather than kept waiting
            self._listening = None
        for group in (gateway, workers):
            _end(group)
        if self._server is not None:
            self._server.stop()
        withdraw()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> LocalFleet:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def _worker_counts(fleet: FleetSpec, workers: int | Mapping[str, int] | None) -> dict[str, int]:
    """Count the workers to start, by backbone. Raises `InvalidInput`."""
    if isinstance(workers, int):
        return dict.fromkeys(fleet.names, workers)
    given = {fleet.find(name).name: count for name, count in (workers or {}).items()}
    return {backbone.name: given.get(backbone.name, backbone.workers) for backbone in fleet.hosted}


def _listen(host: str, port: int) -> socket.socket:
    """Take a port of a host, 0: any. Raises `Conflict` when somebody has it, `InvalidInput` for a host that is not this one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} of {host} is in use, perhaps by another fleet; stop that one, or give this one another port "
                "(--port, or gateway.port in the fleet file)",
                field="gateway.port",
            ) from None
        raise InvalidInput(
            f"the gateway cannot listen on {host}:{port} ({e}); check gateway.host", field="gateway.host"
        ) from e


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
