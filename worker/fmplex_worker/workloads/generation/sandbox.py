"""The sandbox: a process for what others wrote and what could take all time or memory, which are chat templates that come with
packages, and JSON schemas. What kills it is refused, and the worker goes on.

A question and an answer are JSON with its length before it, through pipes. The process begins when it is first needed, again
when it died, and ends with the worker, whose end of the pipe closes then.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fmplex_broker.errors import JobFailed

log = logging.getLogger(__name__)
# There are a few sandboxes only. Real templates take milliseconds, and so do real schemas.
_TEMPLATE_S, _SCHEMA_S = 1.0, 3.0
_START_S = 60.0
_REST_S = 10.0  # so long a template that took too long is not tried again: others need the sandbox


class Refused(Exception):
    """Refusal of a template or schema; its text says why, in a line."""


class Sandbox:
    """Renders templates and tries schemas in the process. Any thread; one question at a time. The parameters are those of
    `grammars.tokenizer_of`, for the texts that schemas are for."""

    def __init__(self, tokenizer_json: str, vocabulary: int, ends: Collection[int]) -> None:
        self._tokenizer = {"tokenizer": tokenizer_json, "vocabulary": vocabulary, "ends": sorted(ends)}
        self._child: _Child | None = None
        self._resting: dict[str, float] = {}  # template -> until when
        self._lock = threading.Lock()

    def render(self, template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> str:
        """Render a chat as transformers does; `variables` of the template: special tokens by their names, how a prompt ends
        (`add_generation_prompt`, `continue_final_message`), and the caller's. Raises `Refused`."""
        now = time.monotonic()
        with self._lock:
            self._resting = {t: until for t, until in self._resting.items() if until > now}
            if template in self._resting:
                raise Refused("it took too long just now; mend head.chat_template, or try again in a while")
            try:
                question = {"template": template, "messages": list(messages), "variables": dict(variables)}
                return self._ask(question, _TEMPLATE_S)
            except TimeoutError:
                self._resting[template] = now + _REST_S
                raise Refused("it takes too long; it may loop for ever") from None

    def check(self, template: str) -> None:
        """Check that it is a template at all. Raises `Refused`."""
        with self._lock:
            try:
                self._ask({"template": template, "messages": None, "variables": {}}, _TEMPLATE_S)
            except TimeoutError:
                raise Refused("it takes too long to compile") from None

    def try_schema(self, schema: str, strict: bool = False) -> str:
        """Compile it and begin some texts; return it as it can be kept, see `grammars.servable`. Raises `Refused` for one that
        fails, or that takes too much."""
        with self._lock:
            try:
                return self._ask({"schema": schema, "strict": strict}, _SCHEMA_S)
            except TimeoutError:
                raise Refused("it takes too long to compile; make it simpler") from None

    def _ask(self, question: Mapping[str, Any], most_s: float) -> str:
        """Ask the process and wait `most_s` seconds at most. Raises `Refused`, or `TimeoutError`."""
        child = self._running()
        if "schema" in question:
            self._ready(child, self._tokenizer)
        try:
            answer = child.ask(question, most_s)
        except (EOFError, OSError) as e:
            child.end()
            self._child = _Child()  # at once, so that the next question need not wait for its start
            if isinstance(e, TimeoutError):
                raise
            raise Refused("it takes too much memory; make it simpler") from None
        if "error" in answer:
            raise Refused(answer["error"])
        return str(answer["value"])

    def _running(self) -> _Child:
        if self._child is not None and not self._child.alive:
            self._child.end()
            self._child = None
        self._child = self._child or _Child()
        self._ready(self._child, None)
        return self._child

    def _ready(self, child: _Child, tokenizer: Mapping[str, Any] | None) -> None:
        try:
            child.wait(tokenizer)
        except (EOFError, OSError) as e:
            child.end()
            log.error("%s has ended as it started (exit code %s)", " ".join(_COMMAND), child.code)
            raise JobFailed("templates and schemas cannot be tried out on this worker now; its log says more") from e


_COMMAND = (sys.executable, "-m", "fmplex_worker.workloads.generation.sandbox_child")


class _Child:
    """Handle on the process, from the worker's side. The process holds nothing of the worker's but two pipes."""

    def __init__(self) -> None:
        self._started = False
        self._taught = False
        self._process = subprocess.Popen(
            _COMMAND,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the worker, which drains
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        self.end = weakref.finalize(self, _end, self._process)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def code(self) -> int | None:
        return self._process.returncode

    def ask(self, question: Mapping[str, Any], most_s: float) -> dict[str, Any]:
        """Send a question and wait for its answer, `most_s` seconds at most. Raises `TimeoutError`, `OSError` or `EOFError`."""
        until = time.monotonic() + most_s
        write(self._to, question, until)
        return read(self._from, until)

    def wait(self, tokenizer: Mapping[str, Any] | None) -> None:
        """Wait until it has started and, if one is given, knows the tokenizer. Raises `EOFError` or `OSError`."""
        if not self._started:
            read(self._from, time.monotonic() + _START_S)
            self._started = True
        if tokenizer is not None and not self._taught:
            self.ask(tokenizer, _START_S)
            self._taught = True


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()


def write(fd: int, value: Mapping[str, Any], until: float | None = None) -> None:
    """Write a value with its length before it; in plain ASCII, so that half a surrogate pair comes through too. Raises
    `TimeoutError` if nobody has read it `until` then (monotonic seconds)."""
    data = json.dumps(value).encode()
    left = memoryview(len(data).to_bytes(8) + data)
    while left:
        _wait(fd, select.POLLOUT, until)
        left = left[os.write(fd, left[: select.PIPE_BUF]) :]  # so much, and no more, is written without waiting


def read(fd: int, until: float | None = None) -> dict[str, Any]:
    """Read a value. Raises `EOFError`, or `TimeoutError` if it has not come `until` then (monotonic seconds)."""
    value: dict[str, Any] = json.loads(_bytes(fd, int.from_bytes(_bytes(fd, 8, until)), until))
    return value


def _bytes(fd: int, count: int, until: float | None) -> bytearray:
    data = bytearray()
    while len(data) < count:
        _wait(fd, select.POLLIN, until)
        part = os.read(fd, min(count - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data


def _wait(fd: int, event: int, until: float | None) -> None:
    """Wait until a pipe can be read or written. Raises `TimeoutError`."""
    if until is None:
        return
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError
