"""What workers say of themselves survives the wire, adds up over workers, and can be looked at twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, OFFLINE, Flow, packb, unpackb
from fmplex_broker.wire.stats import (
    FlowStats,
    ResidencyStats,
    TrainingStats,
    WorkerStats,
    bucket_of,
    bucket_top,
    by_flow,
    decode_stats,
    encode_stats,
    quantile,
)

counts = st.integers(0, 10**12)
seconds = st.integers(0, 10**6).map(lambda n: n / 8)  # sums of these are exact
histograms = st.dictionaries(st.integers(0, 200), st.integers(1, 10**6), max_size=4).map(Counter)
A, B, OF_A = Flow("a", INTERACTIVE), Flow("b", INTERACTIVE), Flow("a", OFFLINE)
addresses = st.builds(Flow, st.text(max_size=5), st.sampled_from(CLASSES))
STANDING = {"weight", "deficit_s", "kv_bytes"}


def drawn(kind: type[Any], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Every field of it has a value of its own."""
    by_type = {"int": counts, "float": seconds, "Counter[int]": histograms, "str": st.text(max_size=8)}
    ways = {f.name: more[f.name] if f.name in more else by_type[str(f.type)] for f in fields(kind)}
    return st.builds(kind, **ways)


flows = drawn(FlowStats)
residency = drawn(ResidencyStats, loads=st.dictionaries(st.sampled_from(["host", "disk", "store"]), counts))
training = drawn(
    TrainingStats,
    units=st.dictionaries(st.text(max_size=4), counts).map(Counter),
    tokens=st.dictionaries(st.text(max_size=4), counts).map(Counter),
    seconds=st.dictionaries(st.text(max_size=4), seconds),
)
workers = drawn(
    WorkerStats,
    residency=residency,
    training=st.none() | training,
    flows=st.dictionaries(addresses, flows, max_size=3),
    ledger=st.dictionaries(st.text(max_size=4), counts, max_size=3),
)


@given(workers)
def test_stats_survive_the_wire(stats: WorkerStats) -> None:
    assert decode_stats(encode_stats(stats)) == stats


@given(workers, st.sampled_from(["worker", "flows", "residency", "training"]))
def test_what_another_version_says_is_an_error_that_readers_expect(stats: WorkerStats, missing: str) -> None:
    wire = unpackb(encode_stats(stats))
    for changed in ({k: v for k, v in wire.items() if k != missing}, {**wire, "new": 1}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            decode_stats(packb(changed))


@given(flows, flows)
def test_the_sum_of_two_workers(one: FlowStats, two: FlowStats) -> None:
    """Of everything but the weight, which they should agree on."""
    both = one + two
    for f in fields(FlowStats):
        mine, other = getattr(one, f.name), getattr(two, f.name)
        assert getattr(both, f.name) == (other if f.name == "weight" else mine + other)


@given(flows, flows)
def test_what_has_come_since_an_earlier_look(before: FlowStats, more: FlowStats) -> None:
    """Counters; what stands is as it stands now."""
    now = before + more
    since = now.since(before)
    for f in fields(FlowStats):
        expected = getattr(now if f.name in STANDING else more, f.name)
        assert getattr(since, f.name) == expected


def test_by_flow() -> None:
    one = WorkerStats("1", "b", "cpu", 1, "h", flows={A: FlowStats(tokens=3, kv_bytes=5), B: FlowStats(tokens=1)})
    two = WorkerStats("2", "b", "cpu", 2, "h", flows={A: FlowStats(tokens=4, kv_bytes=6), OF_A: FlowStats(tokens=9)})
    assert by_flow([one, two]) == {
        A: FlowStats(tokens=7, kv_bytes=11),
        B: FlowStats(tokens=1),
        OF_A: FlowStats(tokens=9),
    }


@given(st.floats(0, 1e9))
def test_a_bucket_holds_what_is_at_most_its_top(ms: float) -> None:
    bucket = bucket_of(ms)
    assert ms <= bucket_top(bucket) * (1 + 1e-9)
    assert bucket == 0 or ms > bucket_top(bucket - 1) * (1 - 1e-9)


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_quantiles_are_right_within_a_bucket(latencies: list[float], q: float) -> None:
    found = quantile(Counter(map(bucket_of, latencies)), q)
    exact = sorted(latencies)[max(0, -int(-q * len(latencies) // 1) - 1)]
    assert found is not None
    assert exact * (1 - 1e-9) <= found <= exact * 2**0.25 * (1 + 1e-9)


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile({}, 0.5) is None
    assert quantile(Counter({3: 0}), 0.5) is None
