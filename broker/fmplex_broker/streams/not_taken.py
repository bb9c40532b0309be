"""Why the broker did not take a job, as errors."""

from __future__ import annotations

from fmplex_broker.errors import BrokerFault, Conflict, FmplexError, QueueFull, RateLimited, TooLarge, VfmClosed
from fmplex_broker.streams.catalog import unknown_vfm
from fmplex_broker.streams.producer import EnqueueResult
from fmplex_broker.wire.messages import OFFLINE, Flow

_RETRY_S = 1.0
_CAPS = {"bytes": "limits.max_pending_bytes of {vfm!r}", "backbone": "max_pending_bytes of its backbone, for all vFMs"}


def not_taken(flow: Flow, got: EnqueueResult) -> FmplexError:
    """Return the error of a call, one of whose jobs was not taken."""
    vfm = flow.vfm
    word, _, what = got.status.partition("_")
    half = "half of " if flow.cls == OFFLINE else ""
    cap = f"{got.most} bytes ({half}{_CAPS[what].format(vfm=vfm)})" if what else ""
    match word:
        case "full" if what:
            return QueueFull(f"as much waits as may, {cap}; come back later", retry_after=_RETRY_S)
        case "full":
            return QueueFull(
                f"the queue of {vfm!r} is full (limits.max_pending); come back later", retry_after=_RETRY_S
            )
        case "large":
            return TooLarge(f"the call is larger than all that may wait, {cap}; split it", field="inputs")
        case "limited":
            return RateLimited(f"{vfm!r} is over its rate; come back later", retry_after=max(got.wait_ms, 1) / 1000)
        case "closed" | "stale":
            return VfmClosed(f"vFM {vfm!r} is not serving")
        case "conflict":
            return Conflict("this idempotency key was used for another request", field="idempotency_key")
        case "failed":
            return BrokerFault(
                f"the broker finds a mistake in this call of {vfm!r}, and not in others; the log says which"
            )
        case _:
            return unknown_vfm(vfm)
