"""Any sequence of calls keeps the books: nothing lost, nothing twice, every second charged once."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from fmplex_worker.scheduling import CLASSES, OFFLINE, DeficitRoundRobin, Flow, Item, Plan, Room

from .harness import AMPLE, KnownCost, flow_queue, own

BUDGET = 50
flows = st.builds(Flow, st.sampled_from("abc"), st.sampled_from(CLASSES))
items = st.builds(
    Item,
    key=st.just(""),
    flow=flows,
    phase=st.just("encode"),
    units=st.integers(1, 70),
    bucket=st.sampled_from([None, None, "A", "B"]),
    segment=st.sampled_from([None, "s", "t"]),
    head=st.sampled_from([None, "h"]),
    alone=st.sampled_from([False, False, False, True]),
    deadline=st.none() | st.floats(0, 50),
)


class Books(RuleBasedStateMachine):
    flying = Bundle("flying")

    def __init__(self) -> None:
        super().__init__()
        cost = KnownCost(BUDGET, gamma=0.3, delta=0.2)
        self.scheduler = DeficitRoundRobin(cost, BUDGET, offline_slice=2.3)
        self.queues: dict[Flow, list[Item]] = {Flow(v, c): [] for v in "abc" for c in CLASSES}
        self.expecting: set[Flow] = set()
        self.measured = 0.0
        self.keys = 0
        self.now = 0.0

    @rule(new=items)
    def add(self, new: Item) -> None:
        self.keys += 1
        new = Item(
            str(self.keys),
            new.flow,
            new.phase,
            new.units,
            new.bucket,
            new.segment,
            new.head,
            new.alone,
            new.deadline,
        )
        self.put(new)

    def put(self, new: Item) -> None:
        self.scheduler.add(new)
        self.queues[new.flow].append(new)

    def deficit(self, flow: Flow) -> float:
        self.scheduler.shares()  # brings every deficit up to the present round
        state = flow_queue(self.scheduler, flow.cls).flows.get(flow.vfm)
        return state.deficit if state is not None else 0.0

    @rule(flow=flows, index=st.integers(0, 9))
    def cancel(self, flow: Flow, index: int) -> None:
        if index < len(self.queues[flow]):
            gone = self.queues[flow].pop(index)
            before = self.deficit(flow)
            assert self.scheduler.remove(gone.key) is gone
            forfeits = not self.queues[flow] and flow not in self.expecting
            assert self.deficit(flow) == (min(before, 0.0) if forfeits else before)
        else:
            assert self.scheduler.remove("unknown") is None

    @rule(target=flying, units=st.integers(0, 80), rows=st.integers(0, 6), wait=st.floats(0, 3))
    def plan(self, units: int, rows: int, wait: float) -> Plan | None:
        self.now += wait
        room = AMPLE if units > 60 else Room(units, rows)
        runnable = any(self.queues.values())
        plan = self.scheduler.plan(self.now, room)
        assert (plan is not None) == (runnable and room.units > 0 and room.items > 0)
        if plan is None:
            return None
        assert 0 < len(plan.items) <= room.items
        assert plan.units == sum(it.units for it in plan.items)
        assert len(plan.items) == 1 or plan.units <= min(BUDGET, room.units)
        assert len(plan.items) == 1 or not any(it.alone for it in plan.items)
        assert {it.bucket for it in plan.items} == {plan.bucket}
        riders = plan.items[len(own(plan)) :]
        assert {it.flow.cls for it in riders} <= {OFFLINE}
        assert plan.items[0].flow.cls == plan.cls
        for it in plan.items:
            assert self.queues[it.flow].pop(0) is it
        return plan

    @rule(plan=consumes(flying), seconds=st.floats(0, 20), again=st.booleans())
    def charge(self, plan: Plan | None, seconds: float, again: bool) -> None:
        if plan is not None:
            for it in plan.items if again else ():
                self.put(it)
            self.scheduler.charge(plan, seconds)
            self.measured += seconds

    @rule(flow=flows, seconds=st.floats(0, 5))
    def owe(self, flow: Flow, seconds: float) -> None:
        """Its jobs took time beside the passes."""
        before = self.deficit(flow)
        self.scheduler.owe(flow, seconds)
        self.measured += seconds
        assert self.deficit(flow) <= max(before - seconds, min(before, 0.0)) + 1e-9

    @rule(flow=flows, more=st.booleans())
    def expect(self, flow: Flow, more: bool) -> None:
        self.scheduler.expect(flow, more)
        (self.expecting.add if more else self.expecting.discard)(flow)

    @rule(vfm=st.sampled_from("abc"), weight=st.sampled_from([0.1, 1.0, 5.0]))
    def set_weight(self, vfm: str, weight: float) -> None:
        self.scheduler.set_weight(vfm, weight)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.scheduler) == sum(map(len, self.queues.values()))
        for flow, queue in self.queues.items():
            assert self.scheduler.pending(flow) == len(queue)

    @invariant()
    def every_second_is_charged_once(self) -> None:
        charged = sum(share.charged for share in self.scheduler.shares().values())
        assert abs(charged - self.measured) <= 1e-9 * (1 + self.measured)

    @invariant()
    def an_empty_flow_has_no_credit(self) -> None:
        for flow, queue in self.queues.items():
            state = flow_queue(self.scheduler, flow.cls).flows.get(flow.vfm)
            if not queue and state is not None and flow not in self.expecting:
                assert state.deficit <= 0
                assert state.deficit < 0 or state.indebted  # until it is tidied


TestBooks = Books.TestCase
