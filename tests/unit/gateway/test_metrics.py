"""What /metrics tells of a fleet."""

from __future__ import annotations

from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from fmplex_broker.specs.deployments import VfmStatus
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.vfm import Slo, VfmSpec
from fmplex_broker.wire.fleet_view import Depth, FleetView, Stored
from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, OFFLINE, Flow
from fmplex_broker.wire.stats import FlowStats, ResidencyStats, TrainingStats, WorkerStats
from fmplex_gateway.metrics import Metrics

BACKBONES = ("minilm", "qwen")


def vfm(backbone: str) -> VfmStatus:
    slo = Slo(latency_ms=30, ttft_ms=500, inter_token_ms=80)
    spec = VfmSpec(name=f"of-{backbone}", backbone=backbone, head=Generation(), slo=slo)
    return VfmStatus(name=spec.name, backbone=backbone, status="serving", version="v", generation=1, serving=spec)


def worker(backbone: str) -> WorkerStats:
    histogram = Counter({5: 4})
    counted = FlowStats(
        done=4, latency=histogram, wait=histogram, tokens=9, ttft=histogram, gaps=histogram, prompt_tokens=3, kv_bytes=1
    )
    return WorkerStats(
        f"w-{backbone}", backbone, "cpu", 1, "host", kv_budget_bytes=8, residency=ResidencyStats(loads={"host": 1}),
        flows={Flow(f"of-{backbone}", cls): counted for cls in CLASSES},
    )  # fmt: skip


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """The samples of a fleet of two backbones, a vFM and a worker on each, and a queue of each vFM."""
    vfms, workers = [vfm(b) for b in BACKBONES], [worker(b) for b in BACKBONES]
    depths = {INTERACTIVE: Depth(7, 1, 90, 20), OFFLINE: Depth(500, 60, 9_000, 1_000)}
    view = FleetView(1_000, 2, workers, vfms, {Flow(v.name, cls): depths[cls] for v in vfms for cls in CLASSES})
    families = text_string_to_metric_families(Metrics().render(view).decode())
    return [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]


def test_every_series_of_a_vfm_or_a_worker_tells_its_backbone(samples: list[Sample]) -> None:
    theirs = [s for s in samples if s.labels.keys() & {"vfm", "worker"}]
    assert len({s.name for s in theirs}) > 30
    for s in theirs:
        assert s.labels.get("backbone") in BACKBONES, s
        assert s.labels.get("vfm", f"of-{s.labels['backbone']}") == f"of-{s.labels['backbone']}", s
        assert s.labels.get("worker", f"w-{s.labels['backbone']}") == f"w-{s.labels['backbone']}", s


@pytest.mark.parametrize("backbone", BACKBONES)
def test_queues_and_targets_are_told(samples: list[Sample], backbone: str) -> None:
    told = {s.name: s.value for s in samples if s.labels == {"backbone": backbone, "vfm": f"of-{backbone}"}}
    assert told == {
        "fmplex_vfm_latency_target_seconds": 0.03,
        "fmplex_vfm_ttft_target_seconds": 0.5,
        "fmplex_vfm_inter_token_target_seconds": 0.08,
    }


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    ("cls", "expected"), [(INTERACTIVE, (7, 1, 0.09, 20, 12)), (OFFLINE, (500, 60, 9.0, 1_000, 440))]
)
def test_queues_are_told_by_class(samples: list[Sample], backbone: str, cls: str, expected: tuple[float, ...]) -> None:
    labels = {"backbone": backbone, "vfm": f"of-{backbone}", "class": cls}
    told = {s.name.removeprefix("fmplex_queue_"): s.value for s in samples if s.labels == labels}
    assert tuple(told.values()) == expected
    assert list(told) == ["waiting", "pending", "oldest_seconds", "jobs_total", "ended_jobs_total"]


def test_every_series_of_a_queue_or_of_what_was_served_tells_its_class(samples: list[Sample]) -> None:
    served = [s for s in samples if s.name.startswith("fmplex_queue_") or {"vfm", "worker"} <= s.labels.keys()]
    assert len(served) > 60
    assert {s.labels.get("class") for s in served} == set(CLASSES)


def test_without_a_broker_it_tells_of_itself() -> None:
    metrics = Metrics()
    metrics.request("/v1/models", 200, 0.01)
    told = metrics.render(None).decode()
    assert 'fmplex_gateway_requests_total{route="/v1/models",status="200"} 1.0' in told
    assert "fmplex_vfms_registered" not in told


def test_bytes_in_the_broker_are_told_where_there_are_any() -> None:
    view = FleetView(1_000, 1, [], [vfm("qwen")], nbytes={"of-qwen": 5_000})
    view.stored["qwen"] = Stored(7_000, 1_000_000)
    told = Metrics().render(view).decode()
    assert 'fmplex_vfm_queued_bytes{backbone="qwen",vfm="of-qwen"} 5000.0' in told
    assert 'fmplex_vfm_queued_limit_bytes{backbone="qwen",vfm="of-qwen"} 2.56e+08' in told
    assert 'fmplex_backbone_queue_bytes{backbone="qwen"} 7000.0' in told
    assert 'fmplex_backbone_queue_limit_bytes{backbone="qwen"} 1e+06' in told


def test_training_is_told_where_a_worker_takes_tuning_jobs() -> None:
    tuner, plain = worker("qwen"), worker("minilm")
    tuner.training = TrainingStats(
        2, Counter(forward=7, step=1), {"forward": 0.5, "step": 0.01}, Counter({"of-qwen": 900}), 0.125, 0.8, 0.9, 3, 25, 1,
        0.04,
    )  # fmt: skip
    families = text_string_to_metric_families(Metrics().render(FleetView(1_000, 2, [tuner, plain])).decode())
    told = {
        (
            s.name.removeprefix("fmplex_training_"),
            *sorted(s.labels.items() - {("backbone", "qwen"), ("worker", "w-qwen")}),
        ): s.value
        for family in families
        for s in family.samples
        if s.name.startswith("fmplex_training_")
    }
    assert told == {
        ("units_total", ("kind", "forward")): 7, ("units_total", ("kind", "step")): 1,
        ("seconds_total", ("kind", "forward")): 0.5, ("seconds_total", ("kind", "step")): 0.01,
        ("tokens_total", ("vfm", "of-qwen")): 900, ("touched_requests_total",): 25, ("late_requests_total",): 1,
        ("halts_total",): 3, ("jobs",): 2, ("slack_seconds",): 0.125, ("cost_error",): 0.04,
        ("spend", ("target", "latency")): 0.8, ("spend", ("target", "inter_token")): 0.9,
    }  # fmt: skip


def test_the_memory_of_a_device_is_told_by_its_parts() -> None:
    tuner = worker("qwen")
    tuner.ledger = {"device": 100, "backbone": 40, "activations": 5, "residency": 20, "kv": 25, "tuning": 10}
    tuner.backbone_bytes, tuner.kv_bytes, tuner.prefix_bytes, tuner.training = 40, 3, 4, TrainingStats(bytes=9)
    told = Metrics().render(FleetView(1_000, 2, [tuner, worker("minilm")])).decode()
    assert 'fmplex_memory_device_bytes{backbone="qwen",worker="w-qwen"} 100.0' in told
    planned = {part: nbytes for part, nbytes in tuner.ledger.items() if part != "device"}
    held = {"backbone": 40, "residency": 0, "kv": 7, "tuning": 9}
    for name, values in (("planned", planned), ("held", held)):
        for part, nbytes in values.items():
            assert (
                f'fmplex_memory_{name}_bytes{{backbone="qwen",part="{part}",worker="w-qwen"}} {float(nbytes)}' in told
            )
        assert told.count(f"fmplex_memory_{name}_bytes{{") == len(values)
