"""A few sandboxes, so that what takes long in one keeps nobody waiting who has another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fmplex_worker.workloads.generation.sandbox import Sandbox

_MOST = 3
_PATIENCE_S = 0.2  # before another one is started, which takes seconds


class Sandboxes:
    """Does what a `Sandbox` does. Any thread; as many questions at a time as there are sandboxes, each of which `make()` makes
    when it is needed."""

    def __init__(self, make: Callable[[], Sandbox]) -> None:
        self._make = make
        self._made = 0
        self._idle: list[Sandbox] = []  # the one that was used last is last
        self._freed = threading.Condition()

    def render(self, template: str, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> str:
        """Render a chat; see `Sandbox.render`."""
        with self._one() as sandbox:
            return sandbox.render(template, messages, variables)

    def check(self, template: str) -> None:
        """Check that it is a template at all; see `Sandbox.check`."""
        with self._one() as sandbox:
            sandbox.check(template)

    def try_schema(self, schema: str, strict: bool = False) -> str:
        """Compile a schema and begin some texts; see `Sandbox.try_schema`."""
        with self._one() as sandbox:
            return sandbox.try_schema(schema, strict)

    @contextmanager
    def _one(self) -> Iterator[Sandbox]:
        with self._freed:
            if self._made:
                self._freed.wait_for(lambda: bool(self._idle), None if self._made == _MOST else _PATIENCE_S)
            # Others may have made the last one meanwhile.
            while not self._idle and self._made == _MOST:
                self._freed.wait()
            if self._idle:
                sandbox = self._idle.pop()
            else:
                self._made += 1
                sandbox = self._make()
        try:
            yield sandbox
        finally:
            with self._freed:
                self._idle.append(sandbox)
                self._freed.notify()
