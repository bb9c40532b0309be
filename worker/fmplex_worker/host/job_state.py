"""The states of a job on a worker, and which may follow which. Pure.

    CLAIMED ─→ AWAITING_VERSION ─→ PREPARING ─→ (AWAITING_INPUT) ─→ AWAITING_MEMORY ─→ READY ⇄ RUNNING ─→ ANSWERED

A job whose version is resident skips AWAITING_VERSION; one that holds no memory between passes skips AWAITING_MEMORY; one that
may be slow to prepare, or may have killed a worker, goes on from PREPARING to AWAITING_PREPARATION, which is by itself. Every
state can end in ANSWERED (a reply is on its way) but RUNNING only once its pass has ended; what has not begun can be RELEASED.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple


class JobState(Enum):
    """What a job waits for, or has come to."""

    CLAIMED = auto()  # from the broker; nobody has looked at it yet
    AWAITING_VERSION = auto()  # its adapter and head are being loaded
    PREPARING = auto()  # on its way through an intake thread with what came with it: decoded, validated, tokenised
    AWAITING_PREPARATION = auto()  # by itself: its turn has not come, or a thread is at it
    AWAITING_INPUT = auto()  # a part of its input is still being computed elsewhere (multimodal models)
    AWAITING_MEMORY = (
        auto()
    )  # for keys and values: before its first pass, when it outgrew them, or after it was evicted
    QUARANTINED = auto()  # redelivered and prepared: another redelivered job has its turn now
    READY = auto()  # pieces of it wait in the scheduler
    RUNNING = auto()  # a piece of it is in a pass
    ANSWERED = auto()  # it has a reply that is not settled yet
    RELEASED = auto()  # given back to the broker, for another worker

    __hash__ = (
        object.__hash__
    )  # of enums by name it is a Python function, and states are looked up several times a token


ENDS = frozenset({JobState.ANSWERED, JobState.RELEASED})
# The version is pinned on the device, so that it cannot be evicted under the job.
PINNED = frozenset(
    {
        JobState.PREPARING, JobState.AWAITING_PREPARATION, JobState.AWAITING_INPUT, JobState.AWAITING_MEMORY,
        JobState.QUARANTINED, JobState.READY, JobState.RUNNING,
    }
)  # fmt: skip
# A job that has not begun takes claim room, so that no more is claimed than the next passes hold. What waits for its version, for
# a preparation of its own or for memory takes none: it must not keep out what could run.
TAKES_ROOM = frozenset({JobState.CLAIMED, JobState.PREPARING, JobState.READY, JobState.RUNNING})

_MAY_FOLLOW: dict[JobState, frozenset[JobState]] = {
    JobState.CLAIMED: frozenset({JobState.AWAITING_VERSION, JobState.PREPARING}) | ENDS,
    JobState.AWAITING_VERSION: frozenset({JobState.PREPARING}) | ENDS,
    JobState.PREPARING: frozenset(
        {
            JobState.AWAITING_PREPARATION, JobState.AWAITING_INPUT, JobState.AWAITING_MEMORY, JobState.QUARANTINED,
            JobState.READY,
        }
    ) | ENDS,
    JobState.AWAITING_PREPARATION: frozenset({JobState.AWAITING_INPUT, JobState.AWAITING_MEMORY, JobState.READY})
    | ENDS,
    JobState.AWAITING_INPUT: frozenset({JobState.AWAITING_MEMORY, JobState.READY}) | ENDS,
    JobState.AWAITING_MEMORY: frozenset({JobState.QUARANTINED, JobState.READY}) | ENDS,
    JobState.QUARANTINED: frozenset({JobState.AWAITING_MEMORY, JobState.READY}) | ENDS,
    JobState.READY: frozenset({JobState.AWAITING_MEMORY, JobState.RUNNING}) | ENDS,
    JobState.RUNNING: frozenset(
        {JobState.AWAITING_MEMORY, JobState.QUARANTINED, JobState.READY, JobState.ANSWERED}
    ),
    JobState.ANSWERED: frozenset(),
    JobState.RELEASED: frozenset(),
}  # fmt: skip


class Transition(NamedTuple):
    """What changes with a job that goes from one state to another: whether its units of claim room come (1) or go (-1), whether
    its version is pinned (1) or unpinned (-1), whether pieces of it may wait from now on, whether it ends."""

    room: int
    pin: int
    queued: bool
    ends: bool


def _transition(before: JobState, after: JobState) -> Transition:
    return Transition(
        (after in TAKES_ROOM) - (before in TAKES_ROOM),
        (after in PINNED) - (before in PINNED),
        after in {JobState.READY, JobState.RUNNING},
        after in ENDS,
    )


TRANSITIONS: dict[JobState, dict[JobState, Transition]] = {
    before: {after: _transition(before, after) for after in states} for before, states in _MAY_FOLLOW.items()
}
