"""The ways to train beside inference that `benchmarks.coserving` compares, on its simulated device."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.coserving import ratios
from benchmarks.coserving_arms import ARMS, KINDS, RIVALS, feasible_rate, serve
from benchmarks.harness import Options, Report

SECONDS = 3.0
RATE = 40.0  # of the encoder's requests a second


def test_each_way_gives_training_what_it_says() -> None:
    seen = {name: serve("encoder", arm, RATE, SECONDS) for name, arm in ARMS.items()}
    assert seen["inference"].share == 0
    assert [seen[f"static_{part}"].share for part in (25, 50, 75)] == [0.25, 0.5, 0.75]
    assert 0 < seen["idle"].share <= seen["every_16"].share <= seen["every_4"].share < seen["every_1"].share
    assert seen["idle"].share < seen["spend_50"].share < seen["spend_80"].share < 1
    assert seen["static_75"].attained < seen["inference"].attained


def test_who_comes_while_only_idle_time_is_used_waits_for_one_unit_at_most() -> None:
    alone, idle = (serve("encoder", ARMS[name], 2.0, SECONDS) for name in ("inference", "idle"))
    assert alone.p99_s < idle.p99_s <= alone.p99_s + 0.025 + 1e-6


def test_training_alone_has_the_device() -> None:
    assert serve("encoder", ARMS["spend_80"], 0.0, SECONDS).share == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_feasible_rate_is_feasible_and_no_lower_than_it_must_be(kind: str) -> None:
    rate = feasible_rate(kind, SECONDS)
    at, above = (serve(kind, ARMS["inference"], factor * rate, SECONDS) for factor in (1.0, 1.5))
    assert min(at.attained, at.firsts) >= 0.99 > min(above.attained, above.firsts)


def test_texts_are_judged_by_every_gap_and_by_the_mean_of_each() -> None:
    seen = serve("generation", ARMS["every_4"], 8.0, SECONDS)
    assert seen.attained < 0.95 < seen.by_mean


def report_of(shares: dict[str, float], attained: dict[str, float]) -> Report:
    report = Report(Options(1, quick=True, json=True, more=argparse.Namespace(parts=["simulated"])))
    report.config["simulated"] = {"loads": [50]}
    for prefix in ("", "generation_"):
        for name in ARMS:
            report.add(
                {
                    f"{prefix}{name}_at_50_share": shares.get(name, 0.1),
                    f"{prefix}{name}_at_50_attained": attained.get(name, 1.0),
                    f"{prefix}{name}_at_50_firsts": 1.0,
                }
            )
    return report


def test_ours_is_compared_to_the_best_other_way_that_attains() -> None:
    report = report_of({"spend_80": 0.6, "every_1": 0.9, "idle": 0.4}, {"every_1": 0.98, "spend_80": 0.995})
    found = ratios(report)
    assert found["share_over_best_rival"] == [pytest.approx(0.6 / 0.4)]
    assert found["attainment_loss_worst"] == [pytest.approx(0.005)]
    assert found["share_at_50"] == [0.6]
    assert found["share_at_20"] == []
    assert set(RIVALS).isdisjoint({"inference", "spend_80", "spend_50"})
