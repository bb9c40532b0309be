"""Tests that run on both kinds of event loop: that of the SDK's users, and that of workers and gateways."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_loops(*loops: str) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Make an asynchronous test one that pytest runs on each of these loops. Its fixtures are ordinary ones."""

    def made(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        def run(loop: str, **arguments: Any) -> None:
            with asyncio.Runner(loop_factory=_LOOPS[loop]) as runner:
                runner.run(test(**arguments))

        own = inspect.signature(test)
        loop = inspect.Parameter("loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = own.replace(parameters=[loop, *own.parameters.values()])  # type: ignore[attr-defined]
        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        run.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
        return pytest.mark.parametrize("loop", loops)(run)

    return made


on_both_loops = on_loops(*_LOOPS)
