"""The ledger of a device: how many bytes of its memory each part of a worker may take. Pure.

It is made once, when the backbone is there: what is stated stands, what is `auto` shares what that leaves, and what does not fit
is refused with the bytes of every part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fleet import WorkerSpec

RESIDENCY, KV, TUNING = 2 << 30, 1 << 30, 1 << 30  # bytes that an `auto` part takes at most
_LEAST = 16 << 20  # bytes that it takes at least
_LEAST_UNITS = 16  # of a pass
_PLANNED = 0.9  # of what there is: allocators leave holes, and libraries take memory of their own


class Found(NamedTuple):
    """What a worker finds as it opens, in bytes: what its device `has` for it, the backbone included; what the `backbone` takes,
    what a pass of `units` tokens takes while it runs, and the fewest keys and values (`least_kv`) that are of use; 0: it
    generates no text. `shared`: its memory is the machine's, of which others live too."""

    has: int
    shared: bool
    backbone: int
    units: int
    activations: int
    least_kv: int = 0


class Ledger(NamedTuple):
    """Bytes of a device: what there is for a worker (`device`), and what its parts may take of that, all together no more.

    `activations` are those of a pass; `residency`: adapters and heads; `kv`: keys and values; `tuning`: what tuning jobs learn,
    and their activations.
    """

    device: int = 0
    backbone: int = 0
    activations: int = 0
    residency: int = RESIDENCY
    kv: int = 0
    tuning: int = 0


UNPLANNED = Ledger()


class _Part(NamedTuple):
    """A part that the fleet file decides by a `key`: so many bytes are `stated`; None: `auto`, from `least` to `most`."""

    what: str
    key: str
    stated: int | None
    least: int
    most: int

    @property
    def needs(self) -> int:
        return self.least if self.stated is None else self.stated


def plan(worker: WorkerSpec, found: Found) -> Ledger:
    """Share out a device. Raises `InvalidInput` that says what each part takes, and names the key to change."""
    device = int(_PLANNED * found.has) if worker.memory_bytes is None else worker.memory_bytes
    if device > found.has:
        raise InvalidInput(
            f"{device:,} bytes are more than the {found.has:,} that the device has for this worker; lower "
            "worker.memory_bytes",
            field="worker.memory_bytes",
        )
    if worker.kv_bytes is not None and worker.kv_bytes < found.least_kv:
        raise InvalidInput(
            f"{worker.kv_bytes:,} bytes hold too few tokens of a text; give at least {found.least_kv:,}, and as much more as "
            "texts are to be long and many",
            field="worker.kv_bytes",
        )
    parts = _parts(worker, found)
    over = found.backbone + found.activations + sum(part.needs for part in parts) - device
    if over > 0:
        raise _refusal(worker, found, parts, device, over)
    auto = [part for part in parts if part.stated is None]
    more = dict(zip(auto, shared(-over, [part.most - part.least for part in auto]), strict=True))
    residency, kv, tuning = (part.needs + more.get(part, 0) for part in parts)
    return Ledger(device, found.backbone, found.activations, residency, kv, tuning)


def _parts(worker: WorkerSpec, found: Found) -> list[_Part]:
    """List adapters and heads, keys and values, tuning, in this order; what this worker does not do takes nothing."""
    residency, tuning = worker.residency.device_bytes, worker.tuning
    parts = [_Part("adapters and heads", "worker.residency.device_bytes", residency, _LEAST, RESIDENCY)]
    if found.least_kv:
        most = KV if found.shared else found.has  # of a GPU all that is left: nobody else would use it
        parts.append(
            _Part("keys and values", "worker.kv_bytes", worker.kv_bytes, found.least_kv, max(most, found.least_kv))
        )
    else:
        parts.append(_Part("keys and values", "worker.kv_bytes", 0, 0, 0))
    stated = tuning.bytes if tuning.enabled else 0
    parts.append(_Part("tuning", "worker.tuning.bytes", stated, _LEAST, TUNING))
    return parts


def shared(left: int, wanted: Sequence[int]) -> list[int]:
    """Share bytes out evenly, to nobody more than is wanted."""
    given = [0] * len(wanted)
    for rank, i in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        given[i] = min(wanted[i], left // (len(wanted) - rank))
        left -= given[i]
    return given


def _refusal(worker: WorkerSpec, found: Found, parts: Sequence[_Part], device: int, over: int) -> InvalidInput:
    taken = [
        f"the backbone {found.backbone:,}",
        f"a pass of {found.units:,} tokens {found.activations:,} (backbone.pass_units)",
        *(
            f"{part.what} {'at least ' if part.stated is None else ''}{part.needs:,} ({part.key})"
            for part in parts
            if part.needs
        ),
    ]
    whose = "worker.memory_bytes" if worker.memory_bytes else f"nine tenths of the {found.has:,} that the device has"
    field, advice = _advice(found, parts, over)
    if worker.memory_bytes:
        advice += "; or raise worker.memory_bytes"
    return InvalidInput(
        f"the parts of this worker take {device + over:,} bytes, and there are {device:,} ({whose}): {', '.join(taken)}; "
        f"{advice}",
        field=field,
    )


def _advice(found: Found, parts: Sequence[_Part], over: int) -> tuple[str, str]:
    """Say which key of the fleet file to change, and how."""
    larger = (part for part in parts if part.stated and part.needs > part.least)
    stated = sorted(larger, key=lambda part: part.needs, reverse=True)
    spare = [part.needs - part.least for part in stated]
    if stated and spare[0] >= over:
        key, most = stated[0].key, stated[0].needs - over
        return key, f'lower {key} to {most:,} or less, or make it "auto": what the others leave'
    keys = " and ".join(part.key for part in stated)
    if sum(spare) >= over:
        return stated[0].key, f'lower {keys} by {over:,} together, or make them "auto"'
    units = found.units * (found.activations - over + sum(spare)) // max(found.activations, 1)
    if units >= _LEAST_UNITS:
        also = f', with {keys} as "auto"' if sum(spare) else ""
        return "backbone.pass_units", f"lower backbone.pass_units to {units:,} or less{also}"
    return "backbone.model", "host a smaller backbone, or take a device with more memory"
