"""Flow queues broken in one way each, for `test_mutants.py`."""

from __future__ import annotations

from fmplex_worker.scheduling import Item
from fmplex_worker.scheduling.flow_queue import FlowQueue
from fmplex_worker.scheduling.flows import FlowState


class KeepsCredit(FlowQueue):
    """Rule 5 forgotten."""

    def _close(self, flow: FlowState) -> None:
        if flow.front is None and flow.deficit == 0:
            del self.flows[flow.vfm]


class KeepsLateCredit(FlowQueue):
    """Rule 5 at the end of a queue, but not for what a true-up gives back afterwards."""

    def adjust(self, vfm: str, seconds: float) -> None:
        flow = self._flow(vfm)
        self.sync(flow)
        flow.deficit += seconds
        if flow.front is not None:
            self.enter(flow)


class ForgivesDebt(FlowQueue):
    """An emptied flow starts afresh."""

    def _close(self, flow: FlowState) -> None:
        if flow.front is None:
            self.flows.pop(flow.vfm, None)


class PaysTheAbsent(FlowQueue):
    """A flow earns while it is idle, and finds that when it comes back."""

    def sync(self, flow: FlowState) -> None:
        rounds = self.round - flow.round
        super().sync(flow)
        if flow.front is None:
            flow.deficit += rounds * flow.weight * self.quantum

    def _close(self, flow: FlowState) -> None:
        pass


class NeverTruesUp(FlowQueue):
    def adjust(self, vfm: str, seconds: float) -> None:
        pass


class TruesUpTwice(FlowQueue):
    def adjust(self, vfm: str, seconds: float) -> None:
        super().adjust(vfm, 2 * seconds)


class CountsJobs(FlowQueue):
    """A price a job, whatever its size."""

    def adjust(self, vfm: str, seconds: float) -> None:
        pass

    def _quote(self, flow: FlowState) -> None:
        super()._quote(flow)
        flow.price = self._cost.price(16)


class RoundsDown(FlowQueue):
    """The price of whole blocks of eight units: what is left over goes free."""

    def _quote(self, flow: FlowState) -> None:
        super()._quote(flow)
        assert flow.front is not None
        flow.price = self._cost.price(max(1, flow.front.units // 8 * 8))


class StartsInDebt(FlowQueue):
    """A newcomer pays for what others had before it came."""

    def _flow(self, vfm: str) -> FlowState:
        new = vfm not in self.flows
        flow = super()._flow(vfm)
        if new:
            flow.deficit = -20 * self.quantum
        return flow


class GiftForComing(FlowQueue):
    """Credit for a flow that becomes busy."""

    def add(self, item: Item) -> None:
        flow = self._flow(item.flow.vfm)
        if flow.front is None:
            flow.deficit += 4 * self.quantum
        super().add(item)


class IgnoresWeights(FlowQueue):
    def reweigh(self, vfm: str) -> None:
        pass

    def _flow(self, vfm: str) -> FlowState:
        flow = super()._flow(vfm)
        flow.weight = 1.0
        return flow


class IgnoresNewWeights(FlowQueue):
    def reweigh(self, vfm: str) -> None:
        pass


class CreditsAtTheNewWeight(FlowQueue):
    """A change of weight counts for rounds that were over."""

    def reweigh(self, vfm: str) -> None:
        if (flow := self.flows.get(vfm)) is not None:
            flow.weight = self._weights[vfm]
            self.sync(flow)
            self.enter(flow)


class ChargesTheCancelled(FlowQueue):
    def remove(self, item: Item) -> None:
        flow = self.flows[item.flow.vfm]
        flow.deficit -= self._cost.price(item.units)
        super().remove(item)


class SmallestFirst(FlowQueue):
    """Small items overtake large ones of their own flow."""

    def take(self, flow: FlowState) -> tuple[Item, float]:
        taken = super().take(flow)
        if flow.queue:
            flow.queue.move_to_end(min(flow.queue, key=lambda key: flow.queue[key].units), last=False)
            self._next(flow)
        return taken
