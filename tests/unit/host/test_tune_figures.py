"""The figures of a tuning job: rates, an end that is to be expected, and not more events than a curve needs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from fmplex_worker.host import tune_figures
from fmplex_worker.host.tune_figures import Figures
from fmplex_worker.training import RunProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(tune_figures.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tune_figures.time, "time", lambda: 1e9 + now[0])
    return now


def test_rates_share_and_end(clock: list[float]) -> None:
    figures = Figures()
    first = figures.note(RunProgress(0, 100), 0.0)
    assert (first.tokens_s, first.share, first.finish_at) == (None, None, None)
    clock[0] += 10
    now = figures.note(RunProgress(20, 100, 1, 0.5, tokens=4000), 2.5)
    assert (now.tokens_s, now.share, now.finish_at) == (400.0, 0.25, int(1e9 + 110 + 40))


def test_a_resumed_training_counts_only_what_it_does_here(clock: list[float]) -> None:
    figures = Figures()
    figures.note(RunProgress(50, 100, tokens=10_000), 0.0)
    clock[0] += 10
    assert figures.note(RunProgress(60, 100, tokens=12_000), 1.0).tokens_s == 200.0


def test_events_are_thinned_out_but_the_end_is_told(clock: list[float]) -> None:
    figures, said = Figures(), []
    for step in range(1, 10_001):
        run = RunProgress(step, 10_000, 1, 1 / step, ended="finished" if step == 10_000 else "")
        if (news := figures.news(run, figures.note(run, 0.0))) is not None:
            said.append(news)
    assert 100 <= len(said) <= 200
    words, data = said[-1]
    assert words == "Step 10000/10000: training loss 0.0001"
    assert (data["step"], data["total_steps"], data["train_loss"]) == (10_000, 10_000, 1e-4)


def test_what_is_no_number_is_not_told(clock: list[float]) -> None:
    run = RunProgress(1, 10, 1, math.nan, math.inf)
    figures = Figures()
    now = figures.note(run, 0.0)
    assert (now.loss, now.validation) == (None, None)
    told: Any = figures.news(run, now)
    assert "train_loss" not in told[1]


def test_each_warning_is_told_once() -> None:
    figures, run = Figures(), RunProgress(1, 10, warnings=("a",))
    assert figures.warnings(run) == ("a",)
    assert figures.warnings(run) == ()
    assert figures.warnings(replace(run, warnings=("a", "b"))) == ("b",)
    assert figures.warnings(replace(run, warnings=("b", "c"))) == ("c",)  # only the last ones are kept
    assert figures.warnings(replace(run, warnings=("d", "e"))) == ("d", "e")
