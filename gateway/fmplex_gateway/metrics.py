"""Prometheus metrics: this gateway's own counters, and the fleet's as workers publish them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fmplex_broker.wire.fleet_view import FleetView
from fmplex_broker.wire.stats import FlowStats, WorkerStats
from fmplex_gateway.generation import metrics as generation
from fmplex_gateway.histograms import buckets
from fmplex_gateway.training_metrics import training


class Metrics:
    """The metrics of one gateway, in a registry of its own, so that two in one process (tests) do not collide."""

    def __init__(self) -> None:
        self._own = CollectorRegistry()
        self._requests = Counter(
            "fmplex_gateway_requests", "HTTP requests by route and status", ["route", "status"], registry=self._own
        )
        self._seconds = Histogram(
            "fmplex_gateway_request_seconds", "Time to answer", ["route"], registry=self._own,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )  # fmt: skip

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered after so many seconds."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self, view: FleetView | None, more: Sequence[Metric] = ()) -> bytes:
        """Return the metrics as Prometheus text, `more` of them too; `view`: the fleet, None if the broker is away."""
        fleet = CollectorRegistry()
        fleet.register(_Fleet(view, more))
        return generate_latest(self._own) + generate_latest(fleet)


class _Fleet(Collector):
    def __init__(self, view: FleetView | None, more: Sequence[Metric]) -> None:
        self._view = view
        self._more = more

    def collect(self) -> Iterator[Metric]:
        yield from self._more
        if self._view is None:
            return
        yield from _queues(self._view)
        yield from _limits(self._view)
        yield from _stored(self._view)
        yield from _workers(self._view.workers)
        yield from _ledgers(self._view.workers)
        yield from _residency(self._view.workers)
        yield from training(self._view.workers)
        flows = [([w.backbone, *flow, w.worker], stats) for w in self._view.workers for flow, stats in w.flows.items()]
        yield from _flows(flows)
        yield from generation.targets(self._view.vfms)
        yield from generation.memory(self._view.workers)
        yield from generation.texts(flows)


def _queues(view: FleetView) -> Iterator[Metric]:
    yield GaugeMetricFamily("fmplex_vfms_registered", "vFMs, idle ones included", value=view.registered)
    labels = ["backbone", "vfm", "class"]
    waiting = GaugeMetricFamily("fmplex_queue_waiting", "Jobs waiting for a worker", labels=labels)
    pending = GaugeMetricFamily("fmplex_queue_pending", "Jobs in a worker's hands", labels=labels)
    oldest = GaugeMetricFamily("fmplex_queue_oldest_seconds", "Age of the oldest job", labels=labels)
    queued = CounterMetricFamily("fmplex_queue_jobs", "Jobs that were ever queued", labels=labels)
    ended = CounterMetricFamily("fmplex_queue_ended_jobs", "Those that were answered or cancelled", labels=labels)
    homes = {vfm.name: vfm.backbone for vfm in view.vfms}
    for flow, depth in view.depths.items():
        which = [homes[flow.vfm], *flow]
        waiting.add_metric(which, depth.waiting)
        pending.add_metric(which, depth.pending)
        oldest.add_metric(which, depth.oldest_ms / 1000)
        queued.add_metric(which, depth.queued)
        ended.add_metric(which, depth.ended)
    yield from (waiting, pending, oldest, queued, ended)


def _limits(view: FleetView) -> Iterator[Metric]:
    """Yield what vFMs are held to, and how much of it their jobs of both classes take."""
    labels = ["backbone", "vfm"]
    held = GaugeMetricFamily("fmplex_vfm_queued_bytes", "Bytes of its jobs in the broker", labels=labels)
    most = GaugeMetricFamily("fmplex_vfm_queued_limit_bytes", "Bytes that they may have", labels=labels)
    target = GaugeMetricFamily("fmplex_vfm_latency_target_seconds", "What the vFM's SLO asks for", labels=labels)
    for vfm in view.vfms:
        which = [vfm.backbone, vfm.name]
        if vfm.serving and vfm.serving.slo.latency_ms:
            target.add_metric(which, vfm.serving.slo.latency_ms / 1000)
        if vfm.serving and (nbytes := view.nbytes.get(vfm.name)):
            held.add_metric(which, nbytes)
            most.add_metric(which, vfm.serving.limits.max_pending_bytes)
    yield from (held, most, target)


def _stored(view: FleetView) -> Iterator[Metric]:
    held = GaugeMetricFamily("fmplex_backbone_queue_bytes", "Bytes of all jobs in the broker", labels=["backbone"])
    most = GaugeMetricFamily("fmplex_backbone_queue_limit_bytes", "Bytes that they may have", labels=["backbone"])
    for backbone, stored in view.stored.items():
        held.add_metric([backbone], stored.nbytes)
        most.add_metric([backbone], stored.most)
    yield from (held, most)


def _workers(workers: list[WorkerStats]) -> Iterator[Metric]:
    def family(kind: type[Metric], name: str, doc: str, values: Iterable[float]) -> Metric:
        metric = kind(name, doc, labels=["backbone", "worker"])  # type: ignore[call-arg]
        for worker, value in zip(workers, values, strict=True):
            metric.add_metric([worker.backbone, worker.worker], value)  # type: ignore[attr-defined]
        return metric

    counter, gauge = CounterMetricFamily, GaugeMetricFamily
    yield family(counter, "fmplex_worker_passes", "Passes run", (w.passes for w in workers))
    yield family(counter, "fmplex_worker_pass_units", "Units (tokens) run", (w.pass_units for w in workers))
    yield family(counter, "fmplex_worker_busy_seconds", "Device time", (w.busy_s for w in workers))
    yield family(gauge, "fmplex_worker_held_jobs", "Jobs in the window", (w.held for w in workers))
    yield family(gauge, "fmplex_worker_memory_bytes", "Unique memory of the process", (w.memory_bytes for w in workers))
    yield family(gauge, "fmplex_worker_device_bytes", "Accelerator memory", (w.device_bytes for w in workers))
    yield family(gauge, "fmplex_worker_cost_error", "Relative error of the cost model", (w.cost_error for w in workers))
    yield family(gauge, "fmplex_worker_pass_budget_units", "Units of a full pass", (w.budget_units for w in workers))
    yield family(
        gauge, "fmplex_worker_pass_budget_seconds", "What it is expected to take", (w.budget_s for w in workers)
    )


def _ledgers(workers: list[WorkerStats]) -> Iterator[Metric]:
    """Yield who may take, and who holds, how much memory of the device that a worker is on."""
    labels = ["backbone", "worker", "part"]
    device = GaugeMetricFamily("fmplex_memory_device_bytes", "Bytes of the device for a worker", labels=labels[:-1])
    planned = GaugeMetricFamily("fmplex_memory_planned_bytes", "Bytes that a part of it may take", labels=labels)
    held = GaugeMetricFamily("fmplex_memory_held_bytes", "Bytes that it holds", labels=labels)
    for w in workers:
        if w.ledger:
            device.add_metric([w.backbone, w.worker], w.ledger["device"])
        for part in w.ledger.keys() - {"device"}:
            planned.add_metric([w.backbone, w.worker, part], w.ledger[part])
            if (nbytes := w.held_bytes.get(part)) is not None:
                held.add_metric([w.backbone, w.worker, part], nbytes)
    yield from (device, planned, held)


def _residency(workers: list[WorkerStats]) -> Iterator[Metric]:
    labels = ["backbone", "worker"]
    held = GaugeMetricFamily("fmplex_residency_bytes", "Bytes of adapters and heads by tier", labels=[*labels, "tier"])
    versions = GaugeMetricFamily("fmplex_residency_versions", "Versions on the device", labels=labels)
    budget = GaugeMetricFamily("fmplex_residency_budget_bytes", "Bytes that versions may take there", labels=labels)
    jobs = CounterMetricFamily(
        "fmplex_residency_jobs", "Jobs by whether their version was there", labels=[*labels, "found"]
    )
    loads = CounterMetricFamily(
        "fmplex_residency_loads", "Versions loaded, by where they came from", labels=[*labels, "source"]
    )
    evictions = CounterMetricFamily("fmplex_residency_evictions", "Versions that had to go", labels=labels)
    seconds = HistogramMetricFamily("fmplex_residency_load_seconds", "Time to load a version", labels=labels)
    for w in workers:
        who, r = [w.backbone, w.worker], w.residency
        for tier, nbytes in (("device", r.device_bytes), ("host", r.host_bytes), ("disk", r.disk_bytes)):
            held.add_metric([*who, tier], nbytes)
        versions.add_metric(who, r.versions)
        budget.add_metric(who, r.budget_bytes)
        jobs.add_metric([*who, "hit"], r.hits)
        jobs.add_metric([*who, "miss"], r.misses)
        for source, n in r.loads.items():
            loads.add_metric([*who, source], n)
        evictions.add_metric(who, r.evictions)
        seconds.add_metric(who, buckets(r.load_ms), sum_value=r.load_s)
    yield from (held, versions, budget, jobs, loads, evictions, seconds)


def _flows(rows: list[tuple[list[str], FlowStats]]) -> Iterator[Metric]:
    """Yield the counters of flows. A row: backbone, vFM, class and worker, and the counters."""
    labels = ["backbone", "vfm", "class", "worker"]
    jobs = CounterMetricFamily("fmplex_vfm_jobs", "Jobs answered", labels=[*labels, "outcome"])
    units = CounterMetricFamily("fmplex_vfm_units", "Units (tokens) run", labels=labels)
    charged = CounterMetricFamily("fmplex_vfm_charged_seconds", "Device time charged", labels=labels)
    deficit = GaugeMetricFamily("fmplex_vfm_deficit_seconds", "Credit (+) or debt (-) in device time", labels=labels)
    weight = GaugeMetricFamily("fmplex_vfm_weight", "Share promised", labels=labels)
    latency = HistogramMetricFamily("fmplex_vfm_latency_seconds", "Enqueue to reply", labels=labels)
    wait = HistogramMetricFamily("fmplex_vfm_queue_wait_seconds", "Enqueue to the start of its pass", labels=labels)
    for which, s in rows:
        jobs.add_metric([*which, "done"], s.done)
        jobs.add_metric([*which, "failed"], s.failed)
        units.add_metric(which, s.units)
        charged.add_metric(which, s.charged_s)
        deficit.add_metric(which, s.deficit_s)
        weight.add_metric(which, s.weight)
        latency.add_metric(which, buckets(s.latency), sum_value=s.latency_s)
        wait.add_metric(which, buckets(s.wait), sum_value=s.wait_s)
    yield from (jobs, units, charged, deficit, weight, latency, wait)
