"""What a storm has come to: findings, which should be none, and how soon the fleet recovered from each fault."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.storm_faults import KINDS, Fault

COUNTED = ("lost", "doubled", "stuck", "wrong", "untyped", "ended", "left", "grown")


@dataclass
class Found:
    """Findings of a storm, in words; all but `did` and `errors` (typed ones that callers were told, by code) should be empty.
    See docs/reliability.md for what each means."""

    did: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    untyped: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Recovery:
    """A fault that came `at_s` after the beginning, and the `seconds` until the fleet had recovered from it."""

    fault: Fault
    at_s: float
    seconds: float


@dataclass
class Record:
    """Everything that a storm has come to, filled as it goes."""

    found: Found = field(default_factory=Found)
    recoveries: list[Recovery] = field(default_factory=list)
    sizes: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Return the number of findings of each sort, all of them 0 if nothing is wrong."""
        return {name: len(getattr(self.found, name)) for name in COUNTED}

    def recovery(self) -> dict[str, dict[str, float]]:
        """Return by kind of fault: how many `times`, `p50_s` and `max_s`, and its `goal_s` if it has one."""
        out: dict[str, dict[str, float]] = {}
        for kind in sorted({one.fault.kind for one in self.recoveries}):
            seconds = [one.seconds for one in self.recoveries if one.fault.kind == kind]
            out[kind] = {"times": float(len(seconds)), "p50_s": statistics.median(seconds), "max_s": max(seconds)}
            if (goal_s := KINDS[kind].goal_s) is not None:
                out[kind]["goal_s"] = goal_s
        return out


def table(record: Record) -> list[str]:
    """Return the recoveries as the table of docs/reliability.md."""
    rows = ["| fault | times | p50 s | max s | goal s |", "|---|---|---|---|---|"]
    for kind, seen in record.recovery().items():
        goal = f"{seen['goal_s']:g}" if "goal_s" in seen else ""
        rows.append(f"| `{kind}` | {seen['times']:.0f} | {seen['p50_s']:.2f} | {seen['max_s']:.2f} | {goal} |")
    return rows


def words_of(found: Found, most: int = 10) -> list[str]:
    """Return the first findings of each sort, in words."""
    sorts: Mapping[str, Sequence[str]] = {name: getattr(found, name) for name in COUNTED}
    return [f"{name}: {words}" for name, all_words in sorts.items() for words in all_words[:most]]
