"""How many layers make a unit."""

from __future__ import annotations

import time

import pytest

from fmplex_worker.tuning import pace
from fmplex_worker.tuning.pace import MOST, UNIT_S, Pace

LAYER = 512.0  # what a layer costs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def took(clock: list[float], chosen: Pace, kind: pace.Kind, layers: int, seconds: float) -> None:
    def run() -> None:
        clock[0] += seconds

    unit = chosen.unit(kind, 512, layers * LAYER, run)
    assert (unit.kind, unit.tokens, unit.cost) == (kind, 512, layers * LAYER)
    unit.run()


def test_the_first_unit_of_a_kind_has_one_layer(clock: list[float]) -> None:
    chosen = Pace()
    took(clock, chosen, "forward", 1, UNIT_S / 4)
    assert (chosen.layers("forward", LAYER), chosen.layers("backward", LAYER)) == (4, 1)


def test_a_unit_has_as_many_layers_as_take_its_time(clock: list[float]) -> None:
    chosen = Pace()
    took(clock, chosen, "backward", 2, UNIT_S)
    assert chosen.layers("backward", LAYER) == 2
    assert chosen.layers("backward", 2 * LAYER) == 1, "half of it is computed again"
    assert chosen.layers("backward", LAYER / 4) == 8, "a shorter row"


def test_never_less_than_one_and_never_more_than_the_most(clock: list[float]) -> None:
    chosen = Pace()
    took(clock, chosen, "check", 1, 10.0)
    assert chosen.layers("check", LAYER) == 1
    for most in (MOST, 1):
        fast = Pace(most)
        took(clock, fast, "check", 1, 0.0)
        assert fast.layers("check", LAYER) == most


def test_it_follows_what_changes_and_a_hiccup_is_forgotten(clock: list[float]) -> None:
    chosen = Pace()
    took(clock, chosen, "forward", 1, UNIT_S / 8)
    took(clock, chosen, "forward", 8, 8 * UNIT_S)
    assert chosen.layers("forward", LAYER) == 1
    for _ in range(8):
        took(clock, chosen, "forward", 1, UNIT_S / 8)
    assert chosen.layers("forward", LAYER) == 7
