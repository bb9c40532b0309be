"""The demo's figures, as tables and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmplex.demo.scoring import Score
from fmplex.demo.tasks import DemoTask
from fmplex.demo.traffic import Sharing, Traffic, quantile

_CLEARLY = 0.1  # above the baseline by at least this


@dataclass(slots=True)
class Report:
    """All that the demo measured. Memory in bytes; `share` of device time by vFM, received while traffic was mixed."""

    fit_seconds: float = 0.0
    total_seconds: float = 0.0
    scores: dict[str, Score] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    sharing: Sharing | None = None
    share: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def check(self, tasks: tuple[DemoTask, ...]) -> None:
        """Add to `failures` whatever is not as promised for these tasks."""
        self.failures += self.traffic.failures
        for task in tasks:
            s = self.scores.get(task.name)
            if s is None or s.value < s.baseline + _CLEARLY:
                self.failures.append(f"{task.name}: held-out score is not clearly above the baseline")
            if not self.traffic.latencies.get(task.name):
                self.failures.append(f"{task.name}: no job was served in the mixed traffic")

    def to_json(self, tasks: tuple[DemoTask, ...]) -> dict[str, Any]:
        """Return the figures as plain values: what `--report` writes."""
        vfms = {}
        for t in tasks:
            s, seen = self.scores.get(t.name), self.traffic.latencies.get(t.name, [])
            vfms[t.name] = {
                "head": t.head,
                "lora_rank": t.lora,
                "metric": s.metric if s else None,
                "score": s.value if s else None,
                "majority": s.baseline if s else None,
                "jobs": len(seen),
                "p50_ms": 1000 * quantile(seen, 0.5),
                "p99_ms": 1000 * quantile(seen, 0.99),
                "share": self.share.get(t.name),
            }
        return {
            "ok": not self.failures,
            "failures": self.failures,
            "vfms": vfms,
            "memory": self.memory,
            "ratios": self._ratios(),
            "throughput": {
                "mixed_jobs_per_s": self.traffic.jobs / self.traffic.seconds if self.traffic.seconds else None,
                "together_jobs_per_s": self.sharing.together if self.sharing else None,
                "one_at_a_time_jobs_per_s": self.sharing.one_at_a_time if self.sharing else None,
            },
            "seconds": {"fit": self.fit_seconds, "total": self.total_seconds},
        }

    def _ratios(self) -> dict[str, float | None]:
        m = self.memory
        return {
            "process_memory_copies_over_shared": m["process_copies"] / m["process_shared"] if m else None,
            "weights_copies_over_shared": m["weights_copies"] / m["weights_shared"] if m else None,
            "throughput_together_over_one_at_a_time": self.sharing.ratio if self.sharing else None,
        }

    def show(self, out: Console, tasks: tuple[DemoTask, ...]) -> None:
        """Print the tables, and what failed."""
        table = Table(box=None, header_style="bold")
        for column in ("vFM", "head", "LoRA", "metric"):
            table.add_column(column, no_wrap=True)
        for column in ("held-out", "majority", "jobs", "p50 ms", "p99 ms", "share"):
            table.add_column(column, justify="right", no_wrap=True)
        rows = self.to_json(tasks)["vfms"]
        for name, v in rows.items():
            table.add_row(
                name, v["head"], f"r={v['lora_rank']}" if v["lora_rank"] else "-", v["metric"] or "-",
                _number(v["score"]), _number(v["majority"]), str(v["jobs"]), f"{v['p50_ms']:.1f}", f"{v['p99_ms']:.1f}",
                f"{100 * (v['share'] or 0):.1f}%",
            )  # fmt: skip
        if self.scores:
            out.print(table)
        if self.memory and self.sharing:
            self._show_totals(out, len(tasks))
        for failure in dict.fromkeys(self.failures):
            out.print(f"[bold red]failed[/]: {escape(failure)}")

    def _show_totals(self, out: Console, n: int) -> None:
        assert self.sharing is not None
        m, ratios = self.memory, self._ratios()
        totals = Table(box=None, header_style="bold")
        for column in ("", "one shared backbone", f"{n} copies / one task at a time", "ratio"):
            totals.add_column(column, justify="right" if column else "left", no_wrap=True)
        for what, key in (("weights", "weights"), ("process memory (unique)", "process")):
            ratio = ratios[f"{'process_memory' if key == 'process' else key}_copies_over_shared"]
            totals.add_row(what, _mib(m[f"{key}_shared"]), _mib(m[f"{key}_copies"]), f"{ratio:.1f} x less")
        s = self.sharing
        totals.add_row(
            "throughput", f"{s.together:.0f} jobs/s", f"{s.one_at_a_time:.0f} jobs/s", f"{s.ratio:.1f} x more"
        )
        out.print()
        out.print(totals)
        rate = self.traffic.jobs / self.traffic.seconds
        out.print(f"mixed traffic: {self.traffic.jobs} jobs, {rate:.0f} a second, {len(self.traffic.failures)} failed; "
                  f"fitting {self.fit_seconds:.0f} s, all {self.total_seconds:.0f} s")  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mib(value: int) -> str:
    return f"{value / 2**20:.0f} MiB"
