"""A store behind HTTP that can be stopped and started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fmplex_broker.streams.embedded import free_port
from tests.support.fleets import status
from tests.support.waiting import wait_until


class FileServer:
    """`python -m http.server` over a folder; stops and starts again at the same address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "http.server", str(self._port), "--bind", "127.0.0.1"]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen([*command, "--directory", self._folder], stdout=null, stderr=null)
        wait_until(lambda: status(self.url) == 200, "the files are served")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> FileServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
