"""Counts what a call does, in steps: the same on every machine, however busy it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def count_steps(call: Callable[[], Any]) -> int:
    """Return how many lines of Python and calls of C a call takes, whether it returns or raises. What C does within one call is
    not counted: so no argument of such a call may be large."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        return trace

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal steps
        steps += event == "c_call"

    tracing, profiling = sys.gettrace(), sys.getprofile()
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        call()
    except Exception:  # whoever asks for steps looks at errors elsewhere
        pass
    finally:
        sys.setprofile(profiling)
        sys.settrace(tracing)
    return steps
