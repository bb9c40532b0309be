"""Workers that tests start begin as forks of one process that has imported all they need: the imports take a worker five seconds
of a processor, most of what many tests take. All else is as with the command: a process of its own, a child of the test's, with
the arguments, environment, folder, log and session that it is given. `fmplex up`, as a process, starts workers by the command.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

_MODULE = "fmplex_worker"
_OWN = "FMPLEX_"  # variables of this product: none is read while a module is imported
_SET_CHILD_SUBREAPER = 36  # of prctl, as linux/prctl.h has it
_MOST_BYTES = 1 << 17
_READY = b"ready"
_IMPORTED_LATE = ("fmplex_worker.engine.opening", "fmplex_worker.host.profile", "fmplex_worker.tuning.opening")

_turn = threading.Lock()  # one worker at a time, whichever thread wants it


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, but for workers."""

    def _execute_child(self, args: Any, *given: Any) -> None:
        executable, preexec, _, passed, cwd, env, _, _, shell, stdin, _, _, out, _, err = given[:15]
        told = [os.fsdecode(arg) for arg in args] if isinstance(args, list | tuple) else []
        plain = not (executable or preexec or passed or shell) and stdin == -1 and out != -1 and err != -1
        if not plain or told[:3] != [sys.executable, "-m", _MODULE] or not _importing_alike(env):
            super()._execute_child(args, *given)  # type: ignore[misc]  # the one place in which a child starts
            return
        order = {
            "args": told[3:],
            "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd or Path.cwd()),
            "session": given[-2],
        }
        try:
            self.pid = _fork(order, [out, err])
            self._child_created = True
        finally:
            self._close_pipe_fds(*given[9:15])  # type: ignore[attr-defined]


def _importing_alike(env: Mapping[str, str] | None) -> bool:
    """Tell whether a process with this environment would import what one with the tests' own does, in the same way."""
    if env is None:
        return True
    here = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
    return here == {name: value for name, value in env.items() if not name.startswith(_OWN)}


def _fork(order: Mapping[str, Any], files: list[int]) -> int:
    """Have a worker forked; return its process id. It is a child of the calling process then."""
    prctl = ctypes.CDLL(None).prctl
    said = json.dumps(order).encode()
    assert len(said) < _MOST_BYTES
    with _turn:
        orders, _process = _nursery()
        prctl(_SET_CHILD_SUBREAPER, 1)  # whose parent has ended is given to the next above that takes such
        try:
            socket.send_fds(orders, [said], files)
            return int(orders.recv(_MOST_BYTES))
        finally:
            prctl(_SET_CHILD_SUBREAPER, 0)


@cache
def _nursery() -> tuple[socket.socket, subprocess.Popen[Any]]:
    """Start the process that forks; return the connection to it, and itself, once it can. It ends with this process."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
    with there:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(there.fileno())],
            pass_fds=[there.fileno()],
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # Ctrl-C is for the tests
        )
    assert here.recv(_MOST_BYTES) == _READY, "it has ended; what it printed says why"
    return here, process


def _nurse(orders: socket.socket) -> None:
    """Fork workers until nobody is left who could ask for one."""
    from fmplex_worker.__main__ import main  # here: most tests start no worker

    for module in _IMPORTED_LATE:
        import_module(module)
    gc.collect()
    gc.freeze()
    orders.send(_READY)
    while True:
        said, files, _flags, _address = socket.recv_fds(orders, _MOST_BYTES, 2)
        if not said:
            return
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0 and (pid := os.fork()) == 0:
            os.closerange(reading, writing + 1)
            orders.close()
            _become(json.loads(said), files)
            sys.exit(main())
        if between == 0:
            os.write(writing, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        orders.send(os.read(reading, 32))
        for fd in (reading, writing, *files):
            os.close(fd)


def _become(order: Mapping[str, Any], files: list[int]) -> None:
    """Make this process what the command would be at its start."""
    if order["session"]:
        os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, place in zip([nothing, *files], (0, 1, 2), strict=True):
        os.dup2(fd, place)
        os.close(fd)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = [f"{_MODULE}/__main__.py", *order["args"]]


if __name__ == "__main__":
    _nurse(socket.socket(fileno=int(sys.argv[1])))
