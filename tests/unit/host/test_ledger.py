"""The ledger of a device: what fits is shared out, what does not is refused with figures and what to change."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fleet import ResidencySpec, TuningSpec, WorkerSpec
from fmplex_broker.specs.schema import parse
from fmplex_worker.ledger import KV, RESIDENCY, TUNING, Found, Ledger, plan, shared

GB = 10**9
KEYS = ("worker.residency.device_bytes", "worker.kv_bytes", "worker.tuning.bytes")
sizes = st.none() | st.integers(1 << 20, 20 * GB)


def spec(
    residency: int | None = None, kv: int | None = None, tuning: int | None = None, trains: bool = True, **more: Any
) -> WorkerSpec:
    return WorkerSpec(
        residency=ResidencySpec(device_bytes=residency), kv_bytes=kv, tuning=TuningSpec(enabled=trains, bytes=tuning), **more
    )  # fmt: skip


def found(has: int = 24 * GB, **more: Any) -> Found:
    return Found(**{"has": has, "shared": True, "backbone": GB, "units": 2048, "activations": GB // 10} | more)


@st.composite
def cases(draw: st.DrawFn) -> tuple[WorkerSpec, Found]:
    worker = spec(draw(sizes), draw(sizes), draw(sizes), draw(st.booleans()))
    found = Found(
        draw(st.integers(1 << 20, 80 * GB)), draw(st.booleans()), draw(st.integers(0, 40 * GB)), 2048,
        draw(st.integers(1, 4 * GB)), draw(st.sampled_from([0, 1 << 20])),
    )  # fmt: skip
    most = draw(st.none() | st.integers(1, found.has))
    return worker.model_copy(update={"memory_bytes": most}), found


def parts(ledger: Ledger) -> int:
    return sum(ledger) - ledger.device


def planned(worker: WorkerSpec, found: Found) -> Ledger | None:
    try:
        return plan(worker, found)
    except InvalidInput:
        return None


@given(cases())
def test_what_fits_is_no_more_than_there_is_and_what_is_stated_stands(case: tuple[WorkerSpec, Found]) -> None:
    worker, found = case
    ledger = planned(worker, found)
    if ledger is None:
        return
    assert parts(ledger) <= ledger.device <= found.has
    assert ledger.device == (worker.memory_bytes or int(0.9 * found.has))
    assert (ledger.backbone, ledger.activations) == (found.backbone, found.activations)
    stated = worker.residency.device_bytes
    assert ledger.residency == stated if stated else 0 < ledger.residency <= RESIDENCY
    if not worker.tuning.enabled:
        assert ledger.tuning == 0
    else:
        assert ledger.tuning == worker.tuning.bytes if worker.tuning.bytes else 0 < ledger.tuning <= TUNING
    if not found.least_kv:
        assert ledger.kv == 0
    elif worker.kv_bytes:
        assert ledger.kv == worker.kv_bytes
    else:
        assert found.least_kv <= ledger.kv <= (KV if found.shared else found.has)


@given(cases())
def test_what_is_refused_names_every_part_and_what_is_done_about_it_helps(case: tuple[WorkerSpec, Found]) -> None:
    worker, found = case
    try:
        ledger = plan(worker, found)
    except InvalidInput as e:
        words, field = e.message, e.field
    else:
        assert ledger.device
        return
    assert f"{found.backbone:,}" in words
    assert f"{found.activations:,}" in words
    for key, stated, there in zip(
        KEYS,
        (worker.residency.device_bytes, worker.kv_bytes, worker.tuning.bytes),
        (True, bool(found.least_kv), worker.tuning.enabled),
        strict=True,
    ):
        assert not there or stated is None or f"{stated:,} ({key})" in words
    advice = words.partition("; ")[2]
    automatic = worker
    for key in KEYS:
        automatic = stating(automatic, key, None) if key in advice else automatic
    lower = re.search(r"lower ([\w.]+) to ([\d,]+) or less", advice)
    most = int(lower[2].replace(",", "")) if lower else 0
    if field == "backbone.pass_units":
        found = found._replace(units=most, activations=found.activations * most // found.units)
    elif lower:
        assert field == lower[1]
        assert planned(stating(worker, lower[1], most), found), words
    assert (planned(automatic, found) is None) == (field == "backbone.model"), words


def stating(worker: WorkerSpec, key: str, nbytes: int | None) -> WorkerSpec:
    if key == KEYS[0]:
        return worker.model_copy(update={"residency": ResidencySpec(device_bytes=nbytes)})
    if key == KEYS[1]:
        return worker.model_copy(update={"kv_bytes": nbytes})
    return worker.model_copy(update={"tuning": worker.tuning.model_copy(update={"bytes": nbytes})})


@given(cases(), st.integers(0, 10 * GB))
def test_more_memory_takes_from_nobody(case: tuple[WorkerSpec, Found], more: int) -> None:
    worker, found = case
    worker = worker.model_copy(update={"memory_bytes": None})
    if (less := planned(worker, found)) is not None:
        larger = plan(worker, found._replace(has=found.has + more))
        assert all(there >= before for there, before in zip(larger, less, strict=True))


@given(cases())
def test_what_trains_leaves_no_more_to_others_than_what_does_not(case: tuple[WorkerSpec, Found]) -> None:
    worker, found = case
    on = worker.model_copy(update={"tuning": worker.tuning.model_copy(update={"enabled": True})})
    off = worker.model_copy(update={"tuning": worker.tuning.model_copy(update={"enabled": False})})
    if (trains := planned(on, found)) is not None:
        alone = plan(off, found)
        assert (trains.residency <= alone.residency) & (trains.kv <= alone.kv)


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**12), max_size=4))
def test_bytes_are_shared_out_evenly(left: int, wanted: list[int]) -> None:
    given = shared(left, wanted)
    assert sum(given) <= left
    assert all(0 <= got <= want for got, want in zip(given, wanted, strict=True))
    short = [got for got, want in zip(given, wanted, strict=True) if got < want]
    if short:
        assert left - sum(given) < len(wanted), "nothing is left over while somebody wants more"
        assert max(short) - min(short) <= 1
        assert max(given) <= max(short) + 1, "nobody has more than who has too little"


def test_where_there_is_plenty_parts_are_as_large_as_ever() -> None:
    assert plan(spec(), found(least_kv=1 << 20))[3:] == (RESIDENCY, KV, TUNING)


def test_a_gpu_gives_keys_and_values_all_that_is_left() -> None:
    gpu = plan(spec(), found(80 * GB, shared=False, least_kv=1 << 20))
    assert gpu[3:4] + gpu[5:] == (RESIDENCY, TUNING)
    assert gpu.device - parts(gpu) < 3
    idle = plan(spec(trains=False), found(80 * GB, shared=False, least_kv=1 << 20))
    assert idle.kv == pytest.approx(gpu.kv + TUNING, abs=3), "what tuning has is not there for texts"


def test_an_example_of_a_refusal() -> None:
    with pytest.raises(InvalidInput) as refusal:
        plan(spec(2 * GB, 6 * GB, memory_bytes=8 * GB), found(least_kv=1 << 20))
    assert refusal.value.field == "worker.kv_bytes"
    assert refusal.value.message == (
        "the parts of this worker take 9,116,777,216 bytes, and there are 8,000,000,000 (worker.memory_bytes): the backbone "
        "1,000,000,000, a pass of 2,048 tokens 100,000,000 (backbone.pass_units), adapters and heads 2,000,000,000 "
        "(worker.residency.device_bytes), keys and values 6,000,000,000 (worker.kv_bytes), tuning at least 16,777,216 "
        '(worker.tuning.bytes); lower worker.kv_bytes to 4,883,222,784 or less, or make it "auto": what the others leave; or '
        "raise worker.memory_bytes"
    )


def test_more_than_the_device_has_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"25,000,000,000 .* 24,000,000,000") as refusal:
        plan(spec(memory_bytes=25 * GB), found())
    assert refusal.value.field == "worker.memory_bytes"


def test_auto_is_written_as_such_and_nothing_else_is() -> None:
    written = {
        "memory_bytes": "auto",
        "kv_bytes": "auto",
        "residency": {"device_bytes": "auto"},
        "tuning": {"bytes": "auto"},
    }
    assert parse(WorkerSpec, written) == WorkerSpec()
    for key in ("memory_bytes", "kv_bytes"):
        with pytest.raises(InvalidInput, match='give a number of bytes, or "auto"') as refusal:
            parse(WorkerSpec, {key: "all"})
        assert refusal.value.field == key
        with pytest.raises(InvalidInput) as refusal:
            parse(WorkerSpec, {key: 0})
        assert refusal.value.field == key
