"""Statistics that a worker publishes once a second, and how those of several workers add up. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from fmplex_broker.wire.messages import Flow, packb, unpackb

# Latency buckets grow by 2^(1/4): bucket i holds what is at most 0.1 ms * 2^(i/4), so a quantile is right within 19 %.
_FIRST_MS, _STEP = 0.1, 4


def bucket_of(ms: float) -> int:
    """Return the bucket of a latency (ms)."""
    return 0 if ms <= _FIRST_MS else math.ceil(_STEP * math.log2(ms / _FIRST_MS))


def bucket_top(bucket: int) -> float:
    """Return the largest latency (ms) that a bucket holds."""
    return float(_FIRST_MS * 2 ** (bucket / _STEP))


def quantile(histogram: Mapping[int, int], q: float) -> float | None:
    """Return the q-quantile in ms, None when nothing was counted."""
    total = sum(histogram.values())
    if total <= 0:
        return None
    seen, need = 0, q * total
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= need:
            return bucket_top(bucket)
    return bucket_top(max(histogram))


# Fields of `FlowStats`: histograms, by bucket; and gauges, which are not counted up.
_HISTOGRAMS = ("latency", "wait", "ttft", "gaps")
_GAUGES = ("weight", "deficit_s", "kv_bytes")


@dataclass(slots=True)
class FlowStats:
    """Counters of one flow on one worker since it started: of a vFM in one class, for what is offline may take as long as it
    will and says nothing of those who wait. `charged_s`: device seconds; `latency`: enqueue to reply, by bucket;
    `wait`: the part of it before the pass.

    If it generates, `tokens`: of its texts; `ttft`: enqueue to the first of them, by bucket; `gaps`: from each to the next;
    `prompt_tokens`, of which `cached_tokens` were not computed again; `kv_bytes`: keys and values that it holds now."""

    weight: float = 1.0
    done: int = 0
    failed: int = 0
    units: int = 0
    charged_s: float = 0.0
    deficit_s: float = 0.0
    latency_s: float = 0.0
    latency: Counter[int] = field(default_factory=Counter)
    wait_s: float = 0.0
    wait: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    ttft_s: float = 0.0
    ttft: Counter[int] = field(default_factory=Counter)
    gaps_s: float = 0.0
    gaps: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    kv_bytes: int = 0

    def __add__(self, other: FlowStats) -> FlowStats:
        """Add up the same flow on two workers."""
        both = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return FlowStats(**both | {"weight": other.weight})

    def since(self, before: FlowStats) -> FlowStats:
        """Return what has been counted since an earlier reading; gauges as they are now."""
        now = {f.name: getattr(self, f.name) for f in fields(self)}
        return FlowStats(**{name: v if name in _GAUGES else v - getattr(before, name) for name, v in now.items()})


@dataclass(slots=True)
class ResidencyStats:
    """Places of a worker's versions: device, host memory, disk. `hits`, `misses`: jobs whose version was, or was not, on the
    device when they were claimed; `loads` by where they came from (host, disk, store); `load_ms`: how long they took, by
    bucket."""

    budget_bytes: int = 0
    versions: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    disk_bytes: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    loads: dict[str, int] = field(default_factory=dict)
    load_s: float = 0.0
    load_ms: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True)
class TrainingStats:
    """Training on a worker since its start. `jobs`: tuning jobs here now; `units` that have run and their device `seconds`, by
    kind; `tokens` trained, by vFM. `slack_s`: how long the device could be lent when that was last asked, at most `spend` of
    latencies and `spend_tokens` of gaps between tokens; `halts`: loans that were cut short for who came. `late` of the `touched`
    requests, which have waited for a unit: past their targets, and in time but for that. `error`: recent relative error of what
    units were expected to take. `bytes` of the device that the jobs take."""

    jobs: int = 0
    units: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: Counter[str] = field(default_factory=Counter)
    slack_s: float = 0.0
    spend: float = 0.0
    spend_tokens: float = 0.0
    halts: int = 0
    touched: int = 0
    late: int = 0
    error: float = 0.0
    bytes: int = 0


@dataclass(slots=True)
class WorkerStats:
    """One worker. Its counters are since its start. `memory_bytes`: unique memory of the process; `device_bytes`: on the
    accelerator; `backbone_bytes`: weights of the shared backbone. `budget_units`: of a full pass, which takes about `budget_s`.
    `kv_bytes`: keys and values that texts hold, of `kv_budget_bytes`; `prefix_bytes`: what is kept beside them for prompts that
    begin alike; `waiting_memory`: jobs that wait for some. `ledger`: bytes of its `device` that it may use, and that each part of
    it may. `training`: None where it takes no tuning jobs. `flows`: the few
    hundred on which something happened last."""

    worker: str
    backbone: str
    device: str
    pid: int
    host: str
    uptime_s: float = 0.0
    passes: int = 0
    pass_units: int = 0
    busy_s: float = 0.0
    held: int = 0
    memory_bytes: int = 0
    device_bytes: int = 0
    backbone_bytes: int = 0
    cost_error: float = 0.0
    budget_units: int = 0
    budget_s: float = 0.0
    kv_bytes: int = 0
    kv_budget_bytes: int = 0
    prefix_bytes: int = 0
    waiting_memory: int = 0
    ledger: dict[str, int] = field(default_factory=dict)
    residency: ResidencyStats = field(default_factory=ResidencyStats)
    training: TrainingStats | None = None
    flows: dict[Flow, FlowStats] = field(default_factory=dict)

    @property
    def held_bytes(self) -> dict[str, int]:
        """Bytes that the parts of the ledger hold now; what a pass takes while it runs is not known."""
        tuning = 0 if self.training is None else self.training.bytes
        kv = self.kv_bytes + self.prefix_bytes
        return {"backbone": self.backbone_bytes, "residency": self.residency.device_bytes, "kv": kv, "tuning": tuning}


def _wire(value: object) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}  # type: ignore[arg-type]


def encode_stats(stats: WorkerStats) -> bytes:
    """Encode a worker's statistics; histograms travel as lists of (bucket, count)."""
    flows = [
        [*flow, _wire(v) | {key: sorted(getattr(v, key).items()) for key in _HISTOGRAMS}]
        for flow, v in stats.flows.items()
    ]
    residency = _wire(stats.residency) | {"load_ms": sorted(stats.residency.load_ms.items())}
    training = _wire(stats.training) if stats.training else None
    return packb(_wire(stats) | {"flows": flows, "residency": residency, "training": training})


def decode_stats(data: bytes) -> WorkerStats:
    """Decode a worker's statistics. Raises `ValueError`, `TypeError` or `KeyError` for bytes of another version."""
    wire: dict[str, Any] = unpackb(data)
    flows = {}
    for vfm, cls, v in wire.pop("flows"):
        histograms = {key: Counter[int](dict(v[key])) for key in _HISTOGRAMS}
        flows[Flow(vfm, cls)] = FlowStats(**{**v, **histograms})
    residency = wire.pop("residency")
    load_ms = Counter(dict(residency.pop("load_ms")))
    training = wire.pop("training")
    if training is not None:
        counts = {name: Counter[str](training[name]) for name in ("units", "tokens")}
        training = TrainingStats(**training | counts)
    return WorkerStats(**wire, residency=ResidencyStats(**residency, load_ms=load_ms), training=training, flows=flows)


def by_flow(workers: Iterable[WorkerStats]) -> dict[Flow, FlowStats]:
    """Sum the statistics of each flow over workers."""
    total: dict[Flow, FlowStats] = {}
    for worker in workers:
        for flow, stats in worker.flows.items():
            total[flow] = total[flow] + stats if flow in total else stats
    return total
