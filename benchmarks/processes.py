"""Processes of a benchmark beside its workers: Python modules, and those that answer a line with a line."""

from __future__ import annotations

import subprocess
import sys
from typing import IO, Self

from fmplex_broker.errors import Unavailable


def start_module(
    module: str,
    *args: str,
    stdin: int | None = None,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python -m module` in a session of its own: Ctrl-C reaches the benchmark alone, which then stops it."""
    command = [sys.executable, "-m", module, *args]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True)


class LineProcess:
    """A module that answers every line on its stdin with one on its stdout, and ends with its input. Between two lines it waits
    and costs nothing. Use as a context manager."""

    def __init__(self, module: str, *args: str) -> None:
        self._module = module
        self._process = start_module(module, *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(self, line: str = "") -> str:
        """Send a line and wait for its answer. Raises `Unavailable` if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Unavailable(f"{self._module} has ended with status {self._process.wait()}")
        return answer.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it may be in the middle of an answer that nobody waits for any more
        self._process.communicate()
