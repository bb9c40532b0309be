"""What people do without co-serving: a process of `fmplex fit` beside a worker, on the same core and niced."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.coserving_kinds import Kind, examples_file
from benchmarks.processes import start_module

_NICE = 19
_TICK_S = 0.05


class Fit:
    """A process that trains by itself, as `fmplex fit` starts one, on the workers' core; niced once it trains."""

    def __init__(self, kind: Kind, model: Path, folder: Path, core: int) -> None:
        self._log = folder / "fit.log"
        with self._log.open("wb") as log:
            self._process = start_module(kind.module, stdin=subprocess.PIPE, stdout=log, stderr=log)
        spec = kind.spec(model, examples_file(kind, folder), folder / "out")
        assert self._process.stdin is not None
        self._process.stdin.write(spec.model_dump_json().encode() + b"\n")
        self._process.stdin.flush()
        self.seen = psutil.Process(self._process.pid)
        self.seen.cpu_affinity([core])

    @property
    def cpu_s(self) -> float:
        """Processor seconds so far."""
        return sum(self.seen.cpu_times()[:2])

    async def begun(self) -> None:
        """Wait until it trains; stop it, and let it be the last to run from now on."""
        while '"started"' not in self._log.read_text():  # nobody tells
            self._check()
            await asyncio.sleep(_TICK_S)
        self.freeze()
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), _NICE)
        with suppress(OSError):  # each session is an autogroup, in which niceness ranks only its members
            Path(f"/proc/{self._process.pid}/autogroup").write_text(str(_NICE))

    def _check(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"`fmplex fit` has ended too early: {self._log.read_text()[-2000:]}")

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it train until the block ends."""
        self._process.send_signal(signal.SIGCONT)
        yield
        self.freeze()

    def freeze(self) -> None:
        """Stop it by SIGSTOP."""
        self._check()
        self._process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        """End it for good."""
        self._process.kill()
        self._process.communicate()
