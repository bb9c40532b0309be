"""Parts of a fleet started one by one: a worker with a config of its own, what it says of itself, a store behind HTTP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fmplex_broker.streams.embedded import free_port
from tests.integration.fleets import spawn, status, until


@contextmanager
def worker(config: Path, broker_url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, once it serves."""
    process = spawn("fmplex_worker", config, broker_url, log)
    try:
        until(lambda: process.poll() is not None or " serves backbone " in log.read_text(), "the worker serves")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        process.wait(60)


def metric(url: str, name: str, **labels: str) -> float:
    """Sum of a gateway's samples of that name with these labels."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=30).text)
    samples = [s for family in families for s in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


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
        until(lambda: status(self.url) == 200, "the files are served")

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
