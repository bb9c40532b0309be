"""The recorder: what each pass contained, while somebody wants to know."""

from __future__ import annotations

import pytest

from fmplex_worker.host import tracing
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.tracing import Recorder
from fmplex_worker.protocol import Outcome
from fmplex_worker.scheduling import INTERACTIVE, CostModel, Flow, Item, Plan, Room, make_scheduler

AMPLE = Room(10_000, 10_000)


class Bench:
    """A recorder beside a scheduler, on a server whose time is the monotonic clock's."""

    def __init__(self, budget: int = 100) -> None:
        cost = CostModel(budget)
        self.scheduler = make_scheduler("drr", cost, budget)
        self.recorder = Recorder("b", "w", self.scheduler, ServerClock())
        self._n = 0

    def arrive(self, vfm: str, units: int = 10) -> None:
        self._n += 1
        self.scheduler.add(Item(str(self._n), Flow(vfm, INTERACTIVE), "encode", units))

    def launch(self) -> Plan:
        plan = self.scheduler.plan(0.0, AMPLE)
        assert plan is not None
        self.recorder.launched(plan)
        return plan

    def land(self, plan: Plan, seconds: float = 0.5, ended: float = 10.0, enqueued_ms: float = 9_000) -> None:
        charges = self.scheduler.charge(plan, seconds)
        self.recorder.landed(plan, [enqueued_ms] * len(plan.items), Outcome(seconds, [], ended), charges)

    def drain(self) -> list[tracing.PassRecord] | None:
        return self.recorder.drain()


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.recorder.listen(True)
    return bench


@pytest.mark.parametrize("policy", ["drr", "fifo"])
def test_what_a_scheduler_charges_is_the_pass(policy: str) -> None:
    scheduler = make_scheduler(policy, CostModel(100), 100)
    for i, units in enumerate((10, 20, 30)):
        scheduler.add(Item(str(i), Flow("ab"[i % 2], INTERACTIVE), "encode", units))
    plan = scheduler.plan(0.0, AMPLE)
    assert plan is not None
    charges = scheduler.charge(plan, 0.3)
    assert len(charges) == len(plan.items)
    assert sum(charges) == pytest.approx(0.3)


def test_nothing_is_recorded_until_somebody_listens_and_nothing_after(bench: Bench) -> None:
    bench.recorder.listen(False)
    for on in (False, True, False):
        bench.arrive("a")
        bench.recorder.listen(on)
        bench.land(bench.launch())
        got = bench.drain()
        assert (got is not None, len(got or [])) == (on, int(on))


def test_a_pass_tells_who_was_in_it(bench: Bench) -> None:
    bench.scheduler.set_weight("a", 3.0)
    for vfm, units in (("a", 10), ("b", 20), ("a", 5), ("b", 90)):
        bench.arrive(vfm, units)
    bench.land(bench.launch(), seconds=0.5, ended=10.0, enqueued_ms=9_100)
    (got,) = bench.drain() or []
    assert (got.worker, got.backbone, got.number, got.cls) == ("w", "b", 1, INTERACTIVE)
    assert (got.start_ms, got.seconds, got.units, got.budget) == (pytest.approx(9_500), 0.5, 35, 100)
    assert got.waiting == 1, "what did not fit"
    assert got.predicted_s > 0
    parts = {part.vfm: part for part in got.parts}
    assert {vfm: (p.jobs, p.units, p.weight) for vfm, p in parts.items()} == {"a": (2, 15, 3.0), "b": (1, 20, 1.0)}
    assert all(p.wait_ms == pytest.approx(400) for p in parts.values())
    assert sum(p.charged_s for p in parts.values()) == pytest.approx(0.5)
    assert {vfm: p.charged_s for vfm, p in parts.items()} == pytest.approx(
        {flow.vfm: share.charged for flow, share in bench.scheduler.shares().items()}
    )


def test_a_record_is_drained_once(bench: Bench) -> None:
    bench.arrive("a")
    bench.land(bench.launch())
    assert len(bench.drain() or []) == 1
    assert bench.drain() == []


def test_what_was_launched_before_anybody_listened_is_not_told(bench: Bench) -> None:
    """Nobody has noted what was predicted for it."""
    bench.recorder.listen(False)
    bench.arrive("a")
    plan = bench.launch()
    bench.recorder.listen(True)
    bench.land(plan)
    assert bench.drain() == []


def test_a_vfm_that_has_just_been_removed_is_still_told_of(bench: Bench) -> None:
    bench.arrive("a")
    bench.land(bench.launch())
    bench.scheduler.forget("a")
    assert [part.vfm for record in bench.drain() or [] for part in record.parts] == ["a"]


def test_of_too_many_passes_the_latest_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_MOST", 3)
    bench.recorder = Recorder("b", "w", bench.scheduler, ServerClock())
    bench.recorder.listen(True)
    for _ in range(5):
        bench.arrive("a")
        bench.land(bench.launch())
    assert [record.number for record in bench.drain() or []] == [3, 4, 5]
