"""What `fmplex demo --tuning` makes of what it has seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from fmplex.demo.tuning.curves import make_curves, phases
from fmplex.demo.tuning.drawing import draw_page, draw_picture
from fmplex.demo.tuning.recipe import LEARNER, NEIGHBOURS
from fmplex.demo.tuning.report import TuningReport
from fmplex.demo.tuning.watching import Answer, Deployed, Load, Scored, Seen
from fmplex.tunes.records import TuneInfo
from fmplex_broker.specs.tune_records import TuneProgress

NAME = NEIGHBOURS[0].name


@pytest.fixture
def seen() -> Seen:
    """Ten seconds before, ten of training, ten after; a request a second, slower while there is training."""
    seen = Seen(Load(1.0, 250.0), begun=10.0, ended=20.0)
    seen.answers = [Answer(n + 0.5, NAME, 100.0 if 10 <= n < 20 else 40.0) for n in range(30)]
    seen.scores = [Scored(5, "v1", 0.5), Scored(14, "v2", 0.6), Scored(25, "v3", 0.8)]
    seen.deployed = [Deployed(12, "v2", 3), Deployed(21, "v3", 9)]
    return seen


def test_the_time_has_three_parts(seen: Seen) -> None:
    before, during, after = phases(seen)
    assert [len(part.of(seen.answers)) for part in (before, during, after)] == [10, 10, 10]
    assert set(during.of(seen.answers, NAME)) == {100.0}
    assert during.of(seen.answers, "nobody") == []


def test_the_curves_are_of_the_last_five_seconds(seen: Seen) -> None:
    curves = make_curves(seen, LEARNER.name, "F1")
    p99 = dict(curves.p99)
    assert (p99[10], p99[11], p99[24], p99[25]) == (40, 100, 100, 40)
    assert curves.scores[-1] == (25, 0.8)
    assert curves.training.begin == 10


def test_both_drawings_are_made(seen: Seen, tmp_path: Path) -> None:
    curves = make_curves(seen, LEARNER.name, "F1")
    draw_picture(curves, tmp_path / "a.png")
    draw_page(curves, tmp_path / "a.html")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert "Held-out F1" in (tmp_path / "a.html").read_text()


def report_of(seen: Seen) -> TuningReport:
    job = TuneInfo(
        id="ftjob-1", status="succeeded", model=LEARNER.name, created_at=0, training_file="f",
        progress=TuneProgress(step=9, steps=9),
    )  # fmt: skip
    return TuningReport(seen=seen, job=job)


def test_the_report_tells_all_of_it(seen: Seen) -> None:
    report = report_of(seen)
    report.check(better=True)
    assert report.failures == []
    told = report.to_json()
    assert told["score"] == {"metric": "span F1", "before": 0.5, "after": 0.8}
    assert told["neighbours"]["during"]["all"] == {"requests": 10, "p50_ms": 100, "p99_ms": 100, "in_time": 1.0}
    out = Console(width=140)
    with out.capture() as printed:
        report.show(out)
    assert "0.500 → 0.800" in printed.get()
    assert "failed" not in printed.get()


def test_who_did_not_get_better_is_a_failure(seen: Seen) -> None:
    seen.scores[-1] = Scored(25, "v3", 0.52)
    seen.deployed.clear()
    report = report_of(seen)
    report.check(better=True)
    assert len(report.failures) == 2
    assert TuningReport().to_json()["score"]["before"] is None
