"""Memory between passes: who gets it, who gives it up, and that everybody comes to an end."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, OFFLINE, Flow
from fmplex_worker.scheduling.kv_admission import KvAdmission


@dataclass
class Sequence:
    vfm: str
    holds: int  # bytes now
    end: int  # … when it ends
    cls: str = INTERACTIVE
    admitted: bool = False

    @property
    def flow(self) -> Flow:
        return Flow(self.vfm, self.cls)


class Worker:
    """Sequences that grow by a byte a pass, as they are let; what is decided is done at once."""

    def __init__(self, total: int, weights: dict[str, float]) -> None:
        self.total, self.weights = total, weights
        self.admission = KvAdmission(total, weights)
        self.sequences: dict[str, Sequence] = {}
        self.evictions = 0

    def come(self, key: str, sequence: Sequence) -> None:
        self.sequences[key] = sequence
        self.admission.request(key, sequence.flow, sequence.holds)
        self.settle()

    def settle(self) -> None:
        while True:
            decision = self.admission.decide()
            for key in decision.granted:
                self.sequences[key].admitted = True
            for key in decision.to_evict:
                self.evictions += 1
                self.sequences[key].admitted = False
                self.admission.release(key)
                self.admission.request(key, self.sequences[key].flow, self.sequences[key].holds)
            assert self.admission.used_bytes <= self.total
            if not decision.to_evict:
                return

    def step(self) -> list[str]:
        """A pass of all that are admitted; those that have ended."""
        ended = []
        for key in [key for key, sequence in self.sequences.items() if sequence.admitted]:
            sequence = self.sequences[key]
            if not sequence.admitted:  # it left for another one in this very pass
                continue
            if sequence.holds >= sequence.end:
                ended.append(key)
                del self.sequences[key]
                self.admission.release(key)
            else:
                sequence.holds += 1
                sequence.admitted = False
                self.admission.request(key, sequence.flow, sequence.holds)
            self.settle()
        return ended


_WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 2.0]), max_size=4)
_SEQUENCES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(CLASSES), st.integers(1, 12), st.integers(0, 12)),
    min_size=1,
    max_size=25,
)


@given(weights=_WEIGHTS, sequences=_SEQUENCES, gap=st.integers(0, 3))
@settings(deadline=None)
def test_everybody_ends_and_everything_is_given_back(
    weights: dict[str, float], sequences: list[tuple[str, str, int, int]], gap: int
) -> None:
    worker = Worker(24, weights)  # one sequence at its largest fits
    for i, (vfm, cls, begin, more) in enumerate(sequences):
        worker.come(str(i), Sequence(vfm, begin, begin + more, cls))
        for _ in range(gap):
            worker.step()
    for _ in range(25 * len(sequences) + 100):
        worker.step()
    assert not worker.sequences
    assert worker.admission.used_bytes == 0
    assert worker.admission.held_bytes == {}
    assert worker.admission.waiting_flows == []


def _full_of_hogs() -> Worker:
    worker = Worker(100, {})
    for i in range(10):
        worker.come(f"hog{i}", Sequence("hog", 10, 40))
    return worker


def test_who_has_little_does_not_wait_for_who_has_much() -> None:
    worker = _full_of_hogs()
    worker.come("chat", Sequence("chat", 2, 5))
    assert worker.sequences["chat"].admitted
    assert not worker.sequences["hog9"].admitted, "the newest sequence of who has most leaves"
    assert all(worker.sequences[f"hog{i}"].admitted for i in range(9))


def test_nobody_leaves_for_more_than_a_fair_share() -> None:
    worker = _full_of_hogs()
    worker.come("big", Sequence("big", 60, 60))
    assert not worker.sequences["big"].admitted
    assert worker.evictions == 0


def test_interactive_sequences_take_the_place_of_offline_ones_whosever() -> None:
    worker = Worker(100, {})
    for i in range(10):
        worker.come(f"batch{i}", Sequence("a", 10, 40, OFFLINE))
    worker.come("own", Sequence("a", 60, 60))
    worker.come("other", Sequence("b", 30, 30))
    assert worker.sequences["own"].admitted
    assert worker.sequences["other"].admitted
    assert [worker.sequences[f"batch{i}"].admitted for i in range(10)] == [True] + 9 * [False], "the oldest goes on"
    worker.come("more", Sequence("c", 20, 20, OFFLINE))
    assert not worker.sequences["more"].admitted, "never the other way round"


def test_who_waits_for_much_keeps_nobody_waiting_who_has_less_than_its_vfm_already() -> None:
    worker = Worker(100, {})
    for vfm in "abc":
        worker.come(vfm, Sequence(vfm, 32, 32))
        worker.sequences[vfm].end = 10**6
    worker.come("large", Sequence("a", 30, 30))
    for i in range(300):
        worker.come(f"chat{i}", Sequence("chat", 4, 4))
        assert worker.sequences[f"chat{i}"].admitted, i
        del worker.sequences[f"chat{i}"]
        worker.admission.release(f"chat{i}")
        worker.settle()
    assert not worker.sequences["large"].admitted


def test_weights_count() -> None:
    worker = Worker(100, {"hog": 4.0})
    for i in range(8):
        worker.come(f"hog{i}", Sequence("hog", 10, 40))
    worker.come("chat", Sequence("chat", 20, 20))
    assert worker.sequences["chat"].admitted, "what is free is for everybody"
    worker.come("chat2", Sequence("chat", 10, 10))
    assert not worker.sequences["chat2"].admitted, "30 of weight 1 would be more than 80 of weight 4"


def test_large_ones_are_not_passed_for_ever() -> None:
    worker = Worker(100, {})
    worker.come("hog", Sequence("hog", 60, 60))
    worker.sequences["hog"].end = 10**6  # it holds on for ever, and never grows
    worker.come("large", Sequence("large", 50, 50))
    rng = random.Random(1)
    for i in range(300):
        worker.come(f"small{i}", Sequence(rng.choice("xyz"), 5, 5))
        for key in [k for k, sequence in worker.sequences.items() if k.startswith("small") and sequence.admitted][:-2]:
            del worker.sequences[key]
            worker.admission.release(key)
            worker.settle()
        if i == 200:
            del worker.sequences["hog"]
            worker.admission.release("hog")
            worker.settle()
    assert worker.sequences["large"].admitted


def test_a_sequence_that_grows_goes_before_new_ones() -> None:
    worker = Worker(20, {})
    worker.come("old", Sequence("a", 10, 20))
    worker.come("other", Sequence("b", 10, 10))
    worker.come("new", Sequence("a", 2, 2))
    assert not worker.sequences["new"].admitted
    worker.sequences["old"].holds = 11
    worker.admission.request("old", Flow("a", INTERACTIVE), 11)
    worker.admission.release("other")
    decision = worker.admission.decide()
    assert decision.granted == ["old", "new"]


@pytest.mark.parametrize("asked_twice", [False, True])
def test_leaving_sequences_are_counted_once(asked_twice: bool) -> None:
    """While a sequence that must leave is still in a pass, nobody else is told to leave for the same bytes."""
    admission = KvAdmission(30, {})
    for i in range(3):
        admission.request(f"hog{i}", Flow("hog", INTERACTIVE), 10)
    assert admission.decide().granted == ["hog0", "hog1", "hog2"]
    admission.request("chat", Flow("chat", INTERACTIVE), 5)
    assert admission.decide().to_evict == ["hog2"]
    if asked_twice:
        admission.request("more", Flow("chat", INTERACTIVE), 5)
    assert admission.decide().to_evict == []
    admission.release("hog2")
    assert set(admission.decide().granted) == ({"chat", "more"} if asked_twice else {"chat"})
