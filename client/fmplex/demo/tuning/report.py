"""The demo's figures, as tables and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmplex.demo.traffic import quantile
from fmplex.demo.tuning.curves import Phase, phases
from fmplex.demo.tuning.recipe import LEARNER, NEIGHBOURS, SPEND
from fmplex.demo.tuning.watching import Load, Seen
from fmplex.tunes.records import TuneInfo

METRIC = "span F1"
_BETTER = 0.05  # by which a vFM is clearly better than before


@dataclass(slots=True)
class TuningReport:
    """All that the demo saw. `job`: the tuning job at its end; `fit_seconds`: for the heads before."""

    seen: Seen = field(default_factory=lambda: Seen(Load(0.0, 0.0)))
    job: TuneInfo | None = None
    fit_seconds: float = 0.0
    total_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def check(self, *, better: bool) -> None:
        """Add to `failures` whatever is not as promised; `better`: the vFM must be clearly better than before."""
        self.failures += self.seen.failures
        first, last = self._scores()
        if first is None or last is None:
            self.failures.append(f"{LEARNER.name}: no version was scored")
        elif better and last < first + _BETTER:
            self.failures.append(f"{LEARNER.name}: {last:.3f} on held-out texts is not clearly better than {first:.3f}")
        if not self.seen.deployed:
            self.failures.append(f"{LEARNER.name}: no checkpoint came to serve")

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values: what `--report` writes."""
        first, last = self._scores()
        job = self.job
        return {
            "ok": not self.failures,
            "failures": self.failures,
            "score": {"metric": METRIC, "before": first, "after": last},
            "scores": [one._asdict() for one in self.seen.scores],
            "versions": [one._asdict() for one in self.seen.deployed],
            "neighbours": {
                phase.name: {name: self._latency(phase, vfm) for name, vfm in _rows()} for phase in phases(self.seen)
            },
            "load": asdict(self.seen.load),
            "training": None if job is None else {
                "status": job.status, "steps": job.progress.step, "of": job.progress.steps, "tokens": job.progress.tokens,
                "seconds": self.seen.ended - self.seen.begun,
            },
            "seconds": {"fit": self.fit_seconds, "total": self.total_seconds},
        }  # fmt: skip

    def show(self, out: Console) -> None:
        """Print the tables, what to look at, and what failed."""
        if self.seen.scores:
            out.print(self._scores_table())
        if self.seen.ended:
            out.print()
            out.print(self._latency_table())
            out.print()
            self._show_summary(out)
        for failure in dict.fromkeys(self.failures):
            out.print(f"[bold red]failed[/]: {escape(failure)}", soft_wrap=True)

    # --- inner ---

    def _scores(self) -> tuple[float | None, float | None]:
        """Return the first score and the last one."""
        values = [one.value for one in self.seen.scores]
        return (values[0], values[-1]) if values else (None, None)

    def _latency(self, phase: Phase, vfm: str | None = None) -> dict[str, float]:
        ms = phase.of(self.seen.answers, vfm)
        in_time = sum(one <= self.seen.load.target_ms for one in ms) / len(ms) if ms else 1.0
        return {"requests": len(ms), "p50_ms": quantile(ms, 0.5), "p99_ms": quantile(ms, 0.99), "in_time": in_time}

    def _scores_table(self) -> Table:
        table = _table("second", "version", "after step", f"held-out {METRIC}", left=("version",))
        steps = {one.version: one.step for one in self.seen.deployed}
        last = ""
        for one in self.seen.scores:
            if one.version != last:
                step = steps.get(one.version)
                table.add_row(f"{one.at:.0f}", one.version, "-" if step is None else str(step), f"{one.value:.3f}")
            last = one.version
        return table

    def _latency_table(self) -> Table:
        parts = phases(self.seen)
        columns = [f"{what} {part.name}" for part in parts for what in ("p50", "p99")]
        table = _table("neighbour", *columns, f"in {self.seen.load.target_ms:.0f} ms", "requests", left=("neighbour",))
        for name, vfm in _rows():
            seen = [self._latency(part, vfm) for part in parts]
            cells = [f"{one[key]:.0f}" for one in seen for key in ("p50_ms", "p99_ms")]
            table.add_row(
                name, *cells, f"{100 * seen[1]['in_time']:.1f}%", str(sum(int(one["requests"]) for one in seen))
            )
        return table

    def _show_summary(self, out: Console) -> None:
        first, last = self._scores()
        job, took, target = self.job, self.seen.ended - self.seen.begun, self.seen.load.target_ms
        if first is not None and last is not None and job is not None:
            out.print(
                f"{LEARNER.name}: held-out {METRIC} {first:.3f} → {last:.3f}, {job.progress.step} steps in {took:.0f} s beside "
                f"{len(self.seen.answers)} requests of its neighbours; heads before {self.fit_seconds:.0f} s, all "
                f"{self.total_seconds:.0f} s",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
        before, during, _ = (self._latency(part) for part in phases(self.seen))
        out.print(
            f"What to look at: the score rises from version to version while p99 stays below the target ({target:.0f} ms). "
            f"Training may use {100 * SPEND:.0f} % of it (worker.tuning.spend): so much later requests may be answered, and no "
            f"more. p99 was {before['p99_ms']:.0f} ms before and {during['p99_ms']:.0f} ms during.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _rows() -> list[tuple[str, str | None]]:
    return [*((task.name, task.name) for task in NEIGHBOURS), ("all", None)]


def _table(*columns: str, left: tuple[str, ...]) -> Table:
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table
