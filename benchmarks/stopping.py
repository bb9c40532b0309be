"""The end of a benchmark that is told to end: by SIGTERM, by Ctrl-C, or with the process that started it.

The process that was started only watches. The benchmark runs in a child of it, which ends in order: SIGTERM and SIGINT raise
`Stopped` in plain code and cancel the coroutine of `run_async`, so `with` and `finally` stop what was started. Whatever
processes are left when that child has ended, however it did, the watching process kills: on Linux all descendants, also those
whose own parents are gone.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import psutil
import uvloop

_Result = TypeVar("_Result")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_SWEEPS, _GONE_S = 5, 10.0  # whose parents are killed come into sight in the next sweep


class Stopped(BaseException):
    """The run was told to end by a signal. `status`: the exit status that says so (128 + signal)."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class _Ending:
    """The handler of SIGTERM and SIGINT in the benchmark: the first one ends the run, later ones change nothing."""

    def __init__(self) -> None:
        self.stopped: Stopped | None = None
        self.cancel: Callable[[], object] | None = None

    def __call__(self, signum: int, _frame: object) -> None:
        if self.stopped is None:
            self.stopped = Stopped(signum)
            if self.cancel is None:
                raise self.stopped
            self.cancel()


_ENDING = _Ending()


def watched() -> None:
    """Go on in a child process. The process that called waits for it, passes SIGTERM and SIGINT on, kills what it leaves and
    exits with its status, so this returns in the child only. Call it before anything is started."""
    _prctl(_SET_CHILD_SUBREAPER, 1)
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    watcher, child = os.getpid(), os.fork()
    for signum in _SIGNALS:
        signal.signal(signum, (lambda got, _: _pass_on(child, got)) if child else _ENDING)
    if child == 0:
        _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != watcher:
            sys.exit(128 + signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _kill_descendants()
        sys.exit(status if status >= 0 else 128 - status)


def finish() -> None:
    """Ignore SIGTERM and SIGINT from now on: the run has ended, and only its report is to be printed."""
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def run_async(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine on uvloop. Raises `Stopped`, once it has cleaned up, if a signal cancelled it."""

    async def cancellable() -> _Result:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        # Not at once: of a task that runs just now, `asyncio.wait_for` forgets it (up to Python 3.11).
        _ENDING.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await work
        finally:
            _ENDING.cancel = lambda: None  # the rest is cleaning up

    try:
        return uvloop.run(cancellable())
    except asyncio.CancelledError:
        if _ENDING.stopped is not None:
            raise _ENDING.stopped from None
        raise
    finally:
        _ENDING.cancel = None


def _pass_on(child: int, signum: int) -> None:
    try:
        os.kill(child, signum)
    except ProcessLookupError:
        return


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _kill_descendants() -> None:
    """Kill every process below this one; say which on stderr, for it should have been stopped already."""
    for _ in range(_SWEEPS):
        left = psutil.Process().children(recursive=True)
        if not left:
            return
        for process in left:
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    print(f"left behind and killed: {' '.join(process.cmdline())[:200]}", file=sys.stderr)
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=_GONE_S)
