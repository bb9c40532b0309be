"""`fmplex top`: what it says happened between two looks."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fmplex.cli.top.tables import draw
from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.heads import Embedding, Generation, Head
from fmplex_broker.specs.vfm import Slo, VfmSpec
from fmplex_broker.wire.fleet_view import Depth, FleetView, Stored
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from fmplex_broker.wire.rates import fleet_rates
from fmplex_broker.wire.stats import (
    FlowStats,
    TrainingStats,
    WorkerStats,
    bucket_of,
    bucket_top,
    by_flow,
    decode_stats,
    encode_stats,
    quantile,
)


def worker(name: str, backbone: str = "b", **vfms: FlowStats) -> WorkerStats:
    flows = {Flow(vfm, INTERACTIVE): stats for vfm, stats in vfms.items()}
    return WorkerStats(name, backbone, "cpu", 1, "host", flows=flows)


def vfm(
    name: str, weight: float = 1.0, head: Head | None = None, slo: Slo | None = None, backbone: str = "b"
) -> VfmStatus:
    spec = VfmSpec(name=name, backbone=backbone, head=head or Embedding(), weight=weight, slo=slo or Slo())
    return VfmStatus(name=name, backbone=backbone, status="serving", version="v", generation=1, serving=spec)


@given(st.floats(min_value=0, max_value=1e7))
def test_a_latency_lies_in_its_bucket_and_not_far_below_its_top(ms: float) -> None:
    top = bucket_top(bucket_of(ms))
    assert ms <= top * (1 + 1e-9)
    assert ms <= 0.1 or top <= ms * 1.19


def test_quantiles_of_nothing_are_nothing() -> None:
    assert quantile({}, 0.5) is None


def test_stats_survive_the_wire() -> None:
    stats = worker("w", a=FlowStats(2.0, 3, 1, 40, 0.5, -0.1, 0.02, Counter({5: 4}), 0.01, Counter({2: 3})))
    assert decode_stats(encode_stats(stats)) == stats


def test_rates_and_shares_are_over_what_happened_between_the_looks() -> None:
    early, late = Counter({30: 5}), Counter({30: 5, 8: 20})  # before these looks it waited long
    before = FleetView(
        1_000, 2, [worker("w", a=FlowStats(done=10, charged_s=1.0, wait=early), b=FlowStats(charged_s=5.0))]
    )
    now = FleetView(
        3_000,
        2,
        [
            worker(
                "w",
                a=FlowStats(done=30, charged_s=1.75, deficit_s=-0.2, wait=late),
                b=FlowStats(done=1, charged_s=5.25),
            )
        ],
        [vfm("a", weight=3.0), vfm("b")],
        {Flow("b", INTERACTIVE): Depth(waiting=7, pending=1, oldest_ms=90)},
    )
    rows = {row["vfm"]: row for row in fleet_rates(before, now)["vfms"]}
    assert rows["a"]["jobs_per_s"] == pytest.approx(10.0)
    assert rows["a"]["share_received"] == pytest.approx(0.75)
    assert rows["a"]["share_promised"] == pytest.approx(0.75)
    assert (rows["a"]["wait_p99_ms"], rows["a"]["deficit_s"]) == (bucket_top(8), -0.2)
    assert (rows["b"]["waiting"], rows["b"]["pending"], rows["b"]["oldest_ms"]) == (7, 1, 90)


def test_a_worker_that_has_gone_does_not_make_rates_negative() -> None:
    before = FleetView(0, 2, [worker("old", a=FlowStats(done=1000)), worker("new", a=FlowStats(done=5))])
    now = FleetView(1_000, 2, [worker("new", a=FlowStats(done=7))], [vfm("a")])
    assert fleet_rates(before, now)["vfms"][0]["jobs_per_s"] == pytest.approx(2.0)


def test_workers_add_up() -> None:
    total = by_flow([worker("w1", a=FlowStats(done=1, latency=Counter({3: 1}))), worker("w2", a=FlowStats(done=2))])
    assert total[Flow("a", INTERACTIVE)].done == 3
    assert total[Flow("a", INTERACTIVE)].latency == Counter({3: 1})


def drawn(rows: dict[str, Any]) -> str:
    console = Console(width=200)
    with console.capture() as shown:
        console.print(draw(rows, 10))
    return shown.get()


def test_vfms_that_generate_tell_of_tokens_between_the_looks() -> None:
    early = FlowStats(tokens=100, prompt_tokens=50, cached_tokens=0, ttft=Counter({60: 9}), gaps=Counter({60: 99}))
    late = FlowStats(
        tokens=300, prompt_tokens=150, cached_tokens=80, ttft=Counter({60: 9, 20: 4}), gaps=Counter({60: 99, 10: 90, 12: 10}),
        kv_bytes=3 << 20,
    )  # fmt: skip
    before = FleetView(0, 2, [worker("w", chat=early)])
    now = FleetView(
        2_000, 2, [worker("w", chat=late)], [vfm("chat", head=Generation(), slo=Slo(ttft_ms=500)), vfm("embed")]
    )
    now.workers[0].kv_budget_bytes, now.workers[0].kv_bytes, now.workers[0].waiting_memory = 8 << 20, 4 << 20, 7
    rows = fleet_rates(before, now)
    by_name = {row["vfm"]: row for row in rows["vfms"]}
    text = by_name["chat"]["text"]
    assert (text["tokens_per_s"], text["prompt_tokens_per_s"], text["cached"]) == (100.0, 50.0, 0.8)
    assert (text["ttft_p50_ms"], text["ttft_target_ms"], text["inter_token_target_ms"]) == (bucket_top(20), 500, None)
    assert (text["inter_token_p50_ms"], text["inter_token_p99_ms"]) == (bucket_top(10), bucket_top(12))
    assert "text" not in by_name["embed"]
    told = drawn(rows)
    assert "tokens/s" in told
    assert "80.0%" in told
    assert "3.0 MiB" in told
    assert "8.0 MiB" in told


def test_fleets_that_generate_nothing_have_no_columns_for_it() -> None:
    now = FleetView(1_000, 1, [worker("w", a=FlowStats(done=1))], [vfm("a")])
    told = drawn(fleet_rates(FleetView(0, 1, [worker("w")]), now))
    assert "jobs/s" in told
    assert "tokens/s" not in told
    assert "KV" not in told


def test_backbones_are_told_where_there_are_several() -> None:
    names = {"minilm": "small", "qwen": "large"}
    vfms = [vfm(name, backbone=backbone) for backbone, name in names.items()]
    workers = [worker(f"of-{name}", backbone) for backbone, name in names.items()]
    told = drawn(fleet_rates(FleetView(0, 2, workers), FleetView(1_000, 2, workers, vfms)))
    for backbone, name in names.items():
        lines = [line.split()[:2] for line in told.splitlines()]
        assert [name, backbone] in lines
        assert [f"of-{name}", backbone] in lines
    assert told.count("backbone") == 2
    one = drawn(fleet_rates(FleetView(0, 1, workers[:1]), FleetView(1_000, 1, workers[:1], vfms[:1])))
    assert "backbone" not in one
    assert "minilm" not in one


def test_bytes_in_the_broker_are_told_by_vfm_and_by_backbone() -> None:
    now = FleetView(1_000, 1, [worker("w")], [vfm("a"), vfm("idle")])
    now.nbytes["a"] = 64 << 20
    now.stored["b"] = Stored(96 << 20, 1_000_000_000)
    rows = fleet_rates(FleetView(0, 1, [worker("w")]), now)
    by_name = {row["vfm"]: row for row in rows["vfms"]}
    assert (by_name["a"]["queued_bytes"], by_name["a"]["max_queued_bytes"]) == (64 << 20, 256_000_000)
    assert by_name["idle"]["queued_bytes"] == 0
    assert rows["backbones"] == [{"backbone": "b", "queued_bytes": 96 << 20, "max_queued_bytes": 1_000_000_000}]
    told = drawn(rows)
    assert "64.0 MiB (26%)" in told
    assert "96.0 MiB" in told


def test_what_is_offline_has_a_row_of_its_own() -> None:
    """Its latencies and its device time say nothing of those who wait for an answer."""
    fast, slow = (
        FlowStats(done=40, charged_s=0.25, latency=Counter({8: 40})),
        FlowStats(done=900, charged_s=1.5, latency=Counter({70: 900})),
    )
    now = FleetView(1_000, 2, [worker("w", a=fast, b=FlowStats(done=4, charged_s=0.25))], [vfm("a"), vfm("b")])
    now.workers[0].flows[Flow("a", OFFLINE)] = slow
    now.depths[Flow("a", OFFLINE)] = Depth(256, 64, 9_000, 1_220)
    rows = fleet_rates(FleetView(0, 2, [worker("w")]), now)
    by_flow = {(row["vfm"], row["class"]): row for row in rows["vfms"]}
    assert by_flow.keys() == {("a", INTERACTIVE), ("b", INTERACTIVE), ("a", OFFLINE)}
    assert (by_flow["a", INTERACTIVE]["p99_ms"], by_flow["a", OFFLINE]["p99_ms"]) == (bucket_top(8), bucket_top(70))
    assert (by_flow["a", INTERACTIVE]["waiting"], by_flow["a", OFFLINE]["waiting"]) == (0, 256)
    assert [row["share_received"] for row in rows["vfms"]] == [0.5, 0.5, 1.0]
    assert "a (offline)" in drawn(rows)


def test_the_memory_of_devices_is_told_by_who_may_have_it_and_who_has_it() -> None:
    now = worker("w")
    parts = {"backbone": 1 << 30, "activations": 3 << 20, "residency": 2 << 30, "kv": 0, "tuning": 1 << 30}
    now.ledger = {"device": 9 << 30, **parts}
    now.backbone_bytes, now.residency.device_bytes = 1 << 30, 5 << 20
    now.training = TrainingStats(bytes=7 << 20)
    assert decode_stats(encode_stats(now)) == now
    rates = fleet_rates(FleetView(0, 0, [worker("w"), worker("old")]), FleetView(1_000, 0, [now, worker("old")]))
    row, nothing = (w["ledger"] for w in rates["workers"])
    assert nothing is None
    held = {"backbone": 1 << 30, "activations": None, "residency": 5 << 20, "kv": 0, "tuning": 7 << 20}
    assert row == {"device": 9 << 30, **{part: {"bytes": parts[part], "held": held[part]} for part in parts}}
    told = drawn(rates)
    for words in ("memory of", "9216 MiB", " 1024 MiB", " 3 MiB", "5 of 2048 MiB", "7 of 1024 MiB"):
        assert words in told
    assert told.count("old") == 1


def test_training_is_told_where_a_worker_takes_tuning_jobs() -> None:
    before, now, plain = worker("w"), worker("w"), worker("other")
    now.training = TrainingStats(
        1, Counter(forward=40), {"forward": 1.0}, Counter(a=512), 0.125, 0.5, 0.9, halts=4, touched=100, late=1
    )
    rates = fleet_rates(FleetView(1_000, 0, [before, plain]), FleetView(3_000, 0, [now, plain]))
    row, nothing = (w["training"] for w in rates["workers"])
    assert nothing is None
    assert row == {
        "jobs": 1, "tokens_per_s": 256.0, "units_per_s": 20.0, "share": 0.5, "slack_ms": 125.0, "spend": 0.5,
        "spend_tokens": 0.9, "halts_per_s": 2.0, "touched_per_s": 50.0, "late": 0.01,
    }  # fmt: skip
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(draw(rates, 10))
    drawn = console.export_text()
    assert "training on" in drawn
    assert "0.50 / 0.90" in drawn
    assert drawn.count("other") == 1
