"""Chat templates come with packages, and a template can loop for ever: here one runs for a second at most."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_MOST_S = 1.0  # of processor time; real templates take milliseconds
_TEMPLATE = "<template>"  # what Jinja calls the file of a template that came as a string


class TooLong(Exception):
    """A template has run for too long."""


def render_bounded(render: Callable[[], str]) -> str:
    """What `render` gives, if the lines of its template take no longer than a second. Raises `TooLong`. This thread's trace
    function is set meanwhile; it sees lines, so a single long call is not cut short."""
    until = time.thread_time() + _MOST_S

    def line(frame: FrameType, event: str, arg: Any) -> Any:
        if time.thread_time() > until:
            raise TooLong("it takes too long; it may loop for ever")
        return line

    def call(frame: FrameType, event: str, arg: Any) -> Any:
        return line(frame, event, arg) if frame.f_code.co_filename == _TEMPLATE else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        return render()
    finally:
        sys.settrace(before)
