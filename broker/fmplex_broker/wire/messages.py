"""The envelopes that travel: a job's payload on its way in, a reply on its way out. msgpack, versioned, no pickle.

What the broker itself must read (job id, reply key, digest, units, deadline) travels beside the payload as stream fields
(`fmplex_broker.streams`), so that taking over a dead worker's jobs never needs to decode a payload.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import msgpack

from fmplex_broker.errors import FmplexError, InvalidInput, JobFailed, from_wire
from fmplex_broker.wire.tensors import Tensor

VERSION = 1
INTERACTIVE, OFFLINE = "interactive", "offline"
CLASSES: tuple[str, ...] = (INTERACTIVE, OFFLINE)  # in order of precedence

_TENSOR = 1  # msgpack extension code


class Flow(NamedTuple):
    """The queue of one vFM in one class."""

    vfm: str
    cls: str


@dataclass(frozen=True, slots=True)
class Request:
    """Content of one job: one input of the vFM and the parameters of the call. `vfm` does not travel with it: the worker
    knows it from the stream."""

    input: Any
    params: dict[str, Any]
    vfm: str = ""


@dataclass(frozen=True)
class Part:
    """What jobs of a call have in common, stored once: `data` is a mapping with the `input` or the `params` of them all."""

    data: bytes

    @classmethod
    def of(cls, key: str, value: Any) -> Part:
        """Make the part of `key`, `input` or `params`. Raises `TypeError` for what cannot travel."""
        return cls(packb({key: value}))

    @cached_property
    def id(self) -> str:
        """Its name: a digest of its bytes."""
        return hashlib.blake2b(self.data, digest_size=12).hexdigest()

    @cached_property
    def value(self) -> Any:
        """What it holds, decoded once for all jobs. Raises `ValueError` for what is not msgpack."""
        return unpackb(self.data)


@dataclass(frozen=True, slots=True)
class SharedPayload:
    """A payload of which only its `own` bytes belong to the job: they go before what its `parts` say."""

    own: bytes
    parts: tuple[Part, ...]


Payload: TypeAlias = bytes | SharedPayload


def split(payload: Payload) -> tuple[bytes, tuple[Part, ...]]:
    """Return the job's own bytes of a payload, and its parts."""
    return (payload, ()) if isinstance(payload, bytes) else (payload.own, payload.parts)


@dataclass(frozen=True, slots=True)
class Reply:
    """Outcome of one job: `output` or `error`, and who did it.

    `version` is the vFM version (content digest) that ran; times are milliseconds; `load_ms` is the part of `queue_ms` in which
    the job waited for that version to be loaded, 0 if it was resident.
    """

    output: Any = None
    error: FmplexError | None = None
    version: str = ""
    worker: str = ""
    units: int = 0
    queue_ms: float = 0.0
    run_ms: float = 0.0
    load_ms: float = 0.0


def _default(value: Any) -> Any:
    if isinstance(value, Tensor):
        return msgpack.ExtType(_TENSOR, packb([value.dtype, list(value.shape), value.data]))
    raise TypeError(f"{type(value).__name__} cannot travel; send text, numbers, lists, mappings or a Tensor")


def _ext_hook(code: int, data: bytes) -> Any:
    if code != _TENSOR:
        raise ValueError(f"unknown msgpack extension {code}")
    # Without this hook: every level of nesting takes 30 KB of C stack, so that one small job could crash its reader.
    dtype, shape, raw = msgpack.unpackb(data, raw=False, strict_map_key=True)
    return Tensor(dtype, tuple(shape), raw)


def packb(value: Any) -> bytes:
    """Encode as msgpack, with `Tensor` as extension 1. Raises `TypeError` for what cannot travel."""
    try:
        return bytes(msgpack.packb(value, default=_default, use_bin_type=True))
    except (OverflowError, ValueError) as e:  # a number over 64 bits, text that is not Unicode, lists without end
        raise TypeError(f"the value cannot travel: {e}") from e


def unpackb(data: bytes) -> Any:
    """Decode what `packb` has encoded. Raises `ValueError` for anything that is not one whole msgpack value."""
    try:
        return msgpack.unpackb(data, raw=False, ext_hook=_ext_hook, strict_map_key=True)
    except (ValueError, MemoryError):
        raise
    except Exception as e:  # msgpack raises several unrelated types for broken bytes
        raise ValueError(f"not msgpack: {e}") from e


def encode_request(request: Request) -> bytes:
    """Encode a request as a job's payload. Raises `TypeError` for what cannot travel."""
    return packb([VERSION, request.input, request.params])


def decode_request(payload: Payload) -> Request:
    """Decode a job's payload. Raises `InvalidInput` when the bytes are not a request of this version."""
    own, parts = split(payload)
    try:
        version, value, params = unpackb(own)
        shared: dict[str, Any] = {}
        for part in parts:
            shared |= part.value
        request = Request(shared.get("input", value), {**shared.get("params", {}), **params})
    except (ValueError, TypeError) as e:
        raise InvalidInput(f"the job's payload cannot be read ({e}); send it with the FMplex client") from e
    if version != VERSION:
        raise InvalidInput(f"the job's payload has version {version!r}, this worker reads {VERSION}")
    return request


def encode_reply(reply: Reply) -> bytes:
    """Encode a reply, times rounded to microseconds. Raises `TypeError` for what cannot travel."""
    error = reply.error.to_wire() if reply.error is not None else None
    times = [round(reply.queue_ms, 3), round(reply.run_ms, 3), round(reply.load_ms, 3)]
    return packb([VERSION, reply.output, error, reply.version, reply.worker, reply.units, *times])


def decode_reply(data: bytes) -> Reply:
    """Decode a reply. Raises `ValueError` when the bytes are not a reply of this version."""
    parts = unpackb(data)
    if not isinstance(parts, list) or not parts or parts[0] != VERSION:
        version = parts[0] if isinstance(parts, list) and parts else parts
        raise ValueError(f"reply has version {version!r}, this client reads {VERSION}")
    _, output, error, digest, worker, units, queue_ms, run_ms, load_ms = parts
    if error is not None and not isinstance(error, dict):
        raise ValueError("the reply's error is not a mapping")
    return Reply(output, from_wire(error) if error else None, digest, worker, units, queue_ms, run_ms, load_ms)


def read_reply(data: bytes) -> Reply:
    """Decode a reply, or return an error in its place: one worker of another version must not silence the others."""
    try:
        return decode_reply(data)
    except ValueError as e:
        return Reply(error=JobFailed(f"the reply cannot be read ({e}); do client and worker run the same FMplex?"))
