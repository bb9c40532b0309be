"""The process behind `reader.Reader`: it decodes and checks one body after the other, until there are none or one kills it."""

from __future__ import annotations

import gc
import os
import resource
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from fmplex_broker.errors import FmplexError, InvalidInput, TooLarge
from fmplex_broker.wire.messages import packb, unpackb
from fmplex_gateway.parsing import check_count, decode, validate

# Memory for one body: its text may be four times as large in Python, and is there twice. What needs more is refused.
_SPARE_BYTES, _SPARE_TIMES = 1 << 28, 12
_LARGE_KIB = 1 << 18  # a process that has once been larger than this ends: the memory goes back with it
_KINDS = "fmplex_gateway.", "fmplex_broker.specs."
_HAS, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")


def main() -> None:
    """Answer questions from standard input on standard output until it closes."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nowhere, fd)  # what a library prints is no answer
    os.nice(5)  # large bodies wait for small ones, not the other way round
    gc.disable()  # what a body is made of refers to nothing twice
    answers.write(b"\1")
    answers.flush()
    while head := questions.read(8):
        answer = _answer(questions, int.from_bytes(head))
        last = _peak_kib() > _LARGE_KIB
        for part in (len(answer).to_bytes(8), bytes([last]), answer):
            answers.write(part)
        answers.flush()
        if last:
            break
    os._exit(0)  # at once: taking everything down in order takes time


def _answer(questions: BinaryIO, size: int) -> bytes:
    kind, msgpack, length = unpackb(questions.read(size))
    _limit_memory(_SPARE_BYTES + _SPARE_TIMES * length)
    raw = questions.read(length)
    if len(raw) < length:
        os._exit(0)  # whoever asked has gone
    try:
        return packb([None, _checked(kind, msgpack, raw)])
    except MemoryError:
        error: FmplexError = TooLarge("the body takes too much memory to be read; split the call")
    except TypeError as e:
        error = InvalidInput(f"the body cannot be read: {e}")
    except FmplexError as e:
        error = e
    return packb([error.to_wire(), None])


def _checked(kind: str, msgpack: bool, raw: bytes) -> object:
    module, _, name = kind.partition(":")
    assert module.startswith(_KINDS)
    value = decode(raw, msgpack=msgpack)
    check_count(value)
    validate(getattr(import_module(module), name), value)
    return value


def _peak_kib() -> int:
    """Return the most memory that this process has held. On Linux `getrusage` says the most that its parent held when it made it,
    if that was more."""
    if _STATUS.exists():
        return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _limit_memory(spare: int) -> None:
    """Limit the memory to what it has, and some; only Linux says what it has, and keeps to the limit."""
    if _HAS.exists():
        most = int(_HAS.read_text().split()[0]) * resource.getpagesize() + spare
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))


if __name__ == "__main__":
    main()
