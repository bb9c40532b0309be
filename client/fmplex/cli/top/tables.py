"""The tables of `fmplex top`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType

from fmplex.columns import Column, FittedTable
from fmplex_broker.wire.messages import OFFLINE

# The numbers say what a narrow terminal leaves out first: the highest.
_BACKBONE = Column("backbone", 3, left=True)  # second of vFMs and of workers, where there are several
_VFMS = (
    Column("vFM"), Column("waiting"), Column("pending", 5), Column("oldest", 3), Column("queued", 9), Column("jobs/s"),
    Column("failed/s", 2), Column("p50 ms"), Column("p99 ms"), Column("target", 4), Column("wait\np99 ms", 6),
    Column("device", 7), Column("share"), Column("promised", 1), Column("deficit", 8),
)  # fmt: skip
_TEXTS = (
    Column("text"), Column("tokens/s"), Column("prompt\ntokens/s", 4), Column("cached", 3), Column("first\np50 ms"),
    Column("first\np99 ms"), Column("first\ntarget", 1), Column("next\np50 ms"), Column("next\np99 ms"),
    Column("next\ntarget", 2), Column("KV"),
)  # fmt: skip
_QUEUES = (Column("queues of", left=True), Column("queued"), Column("at most"))
_WORKERS = (
    Column("worker"), Column("device"), Column("passes/s"), Column("tokens\n/pass"), Column("budget", 4), Column("busy"),
    Column("held", 3), Column("resident", 1), Column("hits", 2), Column("loads/s", 5), Column("memory"), Column("up", 6),
)  # fmt: skip
_MEMORY = (
    Column("worker"), Column("KV"), Column("budget"), Column("kept\nprefixes"), Column("jobs that wait\nfor memory"),
)  # fmt: skip
_LEDGER = (
    Column("memory of"), Column("device"), Column("backbone", 2), Column("a pass", 3), Column("vFMs"), Column("KV", 1),
    Column("tuning", 4),
)  # fmt: skip
_TRAINING = (
    Column("training on"), Column("jobs"), Column("tokens/s"), Column("units/s", 5), Column("share"), Column("slack", 4),
    Column("spend", 3), Column("halts/s", 6), Column("touched/s", 2), Column("late for it", 1),
)  # fmt: skip


def draw(rows: dict[str, Any], limit: int) -> Group:
    """Draw the rows of `fleet_rates` as tables, `limit` of the flows; tokens and KV cache where there is a vFM that generates,
    backbones where there are several, what parts of a device hold of what they may, training where workers take tuning jobs."""
    shown = rows["vfms"][:limit]
    more = rows["registered"] - len({row["vfm"] for row in shown})
    several = len({row["backbone"] for row in (*rows["vfms"], *rows["workers"])}) > 1
    tables: list[RenderableType] = [
        _table(_VFMS, shown, _vfm, several),
        f"[dim]… and {more} quieter vFMs[/]" if more > 0 else "",
    ]
    texts = [_text(_name(r), r["text"]) for r in shown if "text" in r]
    tables += [FittedTable(_TEXTS, texts), ""] if texts else []
    tables.append(_table(_WORKERS, rows["workers"], _worker, several))
    queues = [_queues(b) for b in rows.get("backbones", ())]
    tables += ["", FittedTable(_QUEUES, queues)] if queues else []
    memory = [_memory(w) for w in rows["workers"] if w["kv_budget_bytes"]]
    tables += ["", FittedTable(_MEMORY, memory)] if texts and memory else []
    ledgers = [_ledger(w["worker"], w["ledger"]) for w in rows["workers"] if w.get("ledger")]
    tables += ["", FittedTable(_LEDGER, ledgers)] if ledgers else []
    training = [_training(w["worker"], w["training"]) for w in rows["workers"] if w.get("training")]
    tables += ["", FittedTable(_TRAINING, training)] if training else []
    return Group(*tables)


def _table(
    columns: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    cells: Callable[[dict[str, Any]], list[str]],
    several: bool,
) -> FittedTable:
    """Make a table of rows, with the backbone behind the name if there are `several`."""
    if not several:
        return FittedTable(columns, map(cells, rows))
    told = ((row["backbone"], cells(row)) for row in rows)
    return FittedTable(
        [columns[0], _BACKBONE, *columns[1:]], ([name, backbone, *others] for backbone, (name, *others) in told)
    )


def _vfm(r: dict[str, Any]) -> list[str]:
    return [
        _name(r) if r["status"] == "serving" else f"{_name(r)} ({r['status']})",
        str(r["waiting"]), str(r["pending"]), f"{r['oldest_ms'] / 1000:.1f}s" if r["oldest_ms"] else "-",
        _part(r.get("queued_bytes"), r.get("max_queued_bytes")),
        f"{r['jobs_per_s']:.1f}", f"{r['failed_per_s']:.1f}", _ms(r["p50_ms"]), _ms(r["p99_ms"]),
        f"{r['target_ms']}" if r["target_ms"] else "-", _ms(r["wait_p99_ms"]),
        f"{100 * r['device_s_per_s']:.1f}%", _percent(r["share_received"]), _percent(r["share_promised"]),
        f"{1000 * r['deficit_s']:+.0f} ms" if r["deficit_s"] else "-",
    ]  # fmt: skip


def _name(r: dict[str, Any]) -> str:
    return str(r["vfm"]) + (f" ({OFFLINE})" if r["class"] == OFFLINE else "")


def _text(name: str, t: dict[str, Any]) -> list[str]:
    return [
        name, f"{t['tokens_per_s']:.1f}", f"{t['prompt_tokens_per_s']:.1f}", _percent(t["cached"]),
        _ms(t["ttft_p50_ms"]), _ms(t["ttft_p99_ms"]), f"{t['ttft_target_ms'] or '-'}",
        _ms(t["inter_token_p50_ms"]), _ms(t["inter_token_p99_ms"]), f"{t['inter_token_target_ms'] or '-'}", _mib(t["kv_bytes"]),
    ]  # fmt: skip


def _queues(b: dict[str, Any]) -> list[str]:
    return [b["backbone"], _mib(b["queued_bytes"]), _mib(b["max_queued_bytes"])]


def _worker(w: dict[str, Any]) -> list[str]:
    accelerator = f" + {w['device_bytes'] / 2**30:.2f} GiB" if w["device_bytes"] else ""
    return [
        w["worker"], w["device"], f"{w['passes_per_s']:.1f}", f"{w['tokens_per_pass']:.0f}",
        f"{w['budget_units']} ({1000 * w['budget_s']:.0f} ms)", f"{100 * w['busy']:.0f}%",
        str(w["held"]), f"{w['resident']} ({w['resident_bytes'] / 2**20:.0f} MiB)", _percent(w["hit_rate"]),
        f"{w['loads_per_s']:.1f}", f"{w['memory_bytes'] / 2**20:.0f} MiB{accelerator}", f"{w['uptime_s']:.0f}s",
    ]  # fmt: skip


def _memory(w: dict[str, Any]) -> list[str]:
    return [
        w["worker"],
        _mib(w["kv_bytes"]),
        _mib(w["kv_budget_bytes"]),
        _mib(w["prefix_bytes"]),
        str(w["waiting_memory"]),
    ]


def _ledger(worker: str, ledger: dict[str, Any]) -> list[str]:
    def part(name: str) -> str:
        held, most = ledger[name]["held"], ledger[name]["bytes"]
        if not most:
            return "-"
        of = "" if held in (None, most) else f"{held / 2**20:.0f} of "
        return f"{of}{most / 2**20:.0f} MiB"

    names = ("backbone", "activations", "residency", "kv", "tuning")
    return [worker, f"{ledger['device'] / 2**20:.0f} MiB", *map(part, names)]


def _training(worker: str, t: dict[str, Any]) -> list[str]:
    return [
        worker, str(t["jobs"]), f"{t['tokens_per_s']:.0f}", f"{t['units_per_s']:.1f}", _percent(t["share"]),
        f"{t['slack_ms']:.0f} ms", f"{t['spend']:.2f} / {t['spend_tokens']:.2f}", f"{t['halts_per_s']:.1f}",
        f"{t['touched_per_s']:.1f}", _percent(t["late"]),
    ]  # fmt: skip


def _part(nbytes: int | None, most: int | None) -> str:
    """Say bytes, and of what may be how much that is."""
    return f"{_mib(nbytes)} ({100 * nbytes / most:.0f}%)" if nbytes and most else "-"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.{1 if value < 1000 else 0}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
