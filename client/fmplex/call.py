"""One call of a vFM, as every transport takes it."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from fmplex_broker.errors import InvalidInput

LONGEST_S = 86_400.0  # that a call may take
LONGEST_OFFLINE_S = 7 * LONGEST_S
GRACE_S = 1.0  # after the deadline, for the fleet's own word on it


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a vFM.

    `inputs`: one job each. `params`: parameters of the vFM's head. `timeout_ms`: until the deadline, None: as long as the vFM's
    SLO says. `idempotency_key`: a call that is repeated with the same key does not run twice. `offline`: from spare capacity.
    """

    vfm: str
    inputs: tuple[Any, ...]
    params: Mapping[str, Any]
    timeout_ms: float | None
    idempotency_key: str
    offline: bool = False

    @property
    def give_up_s(self) -> float | None:
        """Seconds from now after which no answer needs to be waited for, None: as long as it takes."""
        return None if self.timeout_ms is None else self.timeout_ms / 1000 + GRACE_S


class Deadline:
    """The deadline of a call that begins now, over all its tries."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._end = math.inf if call.timeout_ms is None else time.monotonic() + call.timeout_ms / 1000

    def left_s(self) -> float:
        """Return the seconds until the deadline: infinity if there is none, 0 once it has passed."""
        return max(0.0, self._end - time.monotonic())

    def rest(self) -> Call:
        """Return the call as it is to be sent now: what is left of its time."""
        return self._call if math.isinf(self._end) else replace(self._call, timeout_ms=max(1.0, self.left_s() * 1000))


def make_call(
    vfm: str,
    inputs: Sequence[Any],
    params: Mapping[str, Any],
    timeout: float | None,
    idempotency_key: str | None = None,
    *,
    offline: bool = False,
) -> Call:
    """Make a call from what a user gave: `timeout` in seconds; a random idempotency key if there is none. Raises `InvalidInput`
    for a timeout that is none."""
    timeout_ms = None if timeout is None else _seconds(timeout) * 1000
    most_s = LONGEST_OFFLINE_S if offline else LONGEST_S
    if timeout_ms is not None and not 1 <= timeout_ms <= most_s * 1000:
        raise InvalidInput(f"timeout must be between 0.001 and {most_s:.0f} seconds, not {timeout}", field="timeout")
    return Call(vfm, tuple(inputs), params, timeout_ms, idempotency_key or secrets.token_hex(12), offline)


def wait_s(timeout: float | None) -> float | None:
    """Return how many seconds to wait for a result, None: as long as it takes. Raises `InvalidInput` for what is no number."""
    if timeout is None:
        return None
    seconds = _seconds(timeout)
    return None if seconds == math.inf else max(0.0, seconds)


def _seconds(timeout: Any) -> float:
    """Return a number of seconds. Raises `InvalidInput`."""
    if isinstance(timeout, bool) or not isinstance(timeout, Real) or math.isnan(timeout):
        raise InvalidInput(f"timeout must be a number of seconds, not {timeout!r}", field="timeout")
    return float(timeout)


def vfm_path(vfm: str, of: str = "") -> str:
    """Return the path of a vFM, or `of` something of it. Raises `InvalidInput` for what is no name."""
    if not vfm or not all(c.isalnum() or c in "._-" for c in vfm):
        raise InvalidInput(f"{vfm!r} is not the name of a vFM", field="vfm")
    return f"/v1/vfms/{vfm}{of}"
