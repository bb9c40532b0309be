"""What is shown in terminals of several widths: columns may be missing, but no name and no number is ever cut."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fmplex.cli import show
from fmplex.cli.top.tables import draw
from fmplex.columns import Column, FittedTable
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.vfm import Limits, Slo
from fmplex_broker.specs.vfm_info import Refusal, VfmInfo

WIDTHS = [80, 100, 120, 160]


def rendered(what: RenderableType, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


def vfm(name: str, **changed: Any) -> dict[str, Any]:
    row = {
        "vfm": name, "backbone": "b", "class": "interactive", "status": "serving",
        "waiting": 12345, "pending": 4096, "oldest_ms": 163_840,
        "jobs_per_s": 1638.4, "failed_per_s": 12.3, "p50_ms": 819.2, "p99_ms": 16384.0, "target_ms": 2500, "wait_p99_ms": 11585.2,
        "device_s_per_s": 0.987, "share_received": 0.364, "share_promised": 0.333, "deficit_s": -12.345,
        "queued_bytes": 209_715_200, "max_queued_bytes": 256_000_000,
    }  # fmt: skip
    return row | changed


TEXT = {
    "tokens_per_s": 12345.6, "prompt_tokens_per_s": 98765.4, "cached": 0.625, "ttft_p50_ms": 724.1, "ttft_p99_ms": 23170.5,
    "ttft_target_ms": 501, "inter_token_p50_ms": 36.2, "inter_token_p99_ms": 181.7, "inter_token_target_ms": 81,
    "kv_bytes": 1717986918,
}  # fmt: skip
WORKER = {
    "worker": "gpu-node-17-4242", "backbone": "b", "device": "cuda:0", "passes_per_s": 123.4, "tokens_per_pass": 4093.0,
    "budget_units": 8192, "budget_s": 0.057, "busy": 0.97, "held": 511, "resident": 27, "resident_bytes": 345 << 20,
    "hit_rate": 0.991, "loads_per_s": 2.7, "memory_bytes": 5432 << 20, "device_bytes": 70 << 30, "uptime_s": 86399.0,
    "kv_bytes": 1717986918, "kv_budget_bytes": 42949672960, "prefix_bytes": 323223552, "waiting_memory": 19,
    "training": {
        "jobs": 13, "tokens_per_s": 23456.7, "units_per_s": 345.6, "share": 0.123, "slack_ms": 98765.4, "spend": 0.8,
        "spend_tokens": 0.9, "halts_per_s": 234.5, "touched_per_s": 1234.5, "late": 0.0123,
    },
    "ledger": {
        "device": 135 << 30, "backbone": {"bytes": 15 << 30, "held": 15 << 30}, "activations": {"bytes": 3 << 30, "held": None},
        "residency": {"bytes": 2 << 30, "held": 345 << 20}, "kv": {"bytes": 114 << 30, "held": 71 << 30},
        "tuning": {"bytes": 1 << 30, "held": 0},
    },
}  # fmt: skip
NAMES = ("customer-support-bot", "acme-legal-v2", "stars")


def fleet(*names: str) -> dict[str, Any]:
    backbone = {"backbone": "b", "queued_bytes": 912_680_550, "max_queued_bytes": 1_000_000_000}
    vfms = [vfm(name, text=TEXT) for name in names]
    return {"registered": len(names), "vfms": vfms, "backbones": [backbone], "workers": [WORKER]}


@pytest.mark.parametrize("width", WIDTHS)
def test_top_cuts_nothing_and_always_shows_what_matters(width: int) -> None:
    told = rendered(draw(fleet(*NAMES), 10), width)
    assert "…" not in told
    words = told.split()
    for name in NAMES:
        assert words.count(name) == 2  # among all vFMs, and among those that generate
    for value in ("12345.6", "724.1", "23170", "36.2", "181.7", "1638.4", "12345", "819.2", "16384", "36.4%"):
        assert words.count(value) >= len(NAMES)
    assert told.count("1638.4 MiB") == len(NAMES) + 1  # and the worker's
    assert {"gpu-node-17-4242", "cuda:0", "97%"} <= set(words)
    assert "5432 MiB + 70.00 GiB" in told
    assert "870.4 MiB" in told  # of all queues
    assert {"13", "23457", "12.3%"} <= set(words)  # training
    assert "345 of 2048 MiB" in told  # of the memory of the device
    wide = set(rendered(draw(fleet(*NAMES), 10), 400).split())
    assert {"200.0", "(82%)"} <= wide
    assert set(words) <= wide


def test_a_wide_terminal_shows_every_column_and_a_narrow_one_leaves_out_the_least_important() -> None:
    narrow, middle, wide = (rendered(draw(fleet(*NAMES), 10), width) for width in (80, 100, 160))
    assert "deficit" in wide
    assert "deficit" not in middle
    assert "wait" in middle
    assert "promised" in narrow
    assert "pending" not in narrow


@pytest.mark.parametrize("width", WIDTHS)
def test_long_names_are_whole_too(width: int) -> None:
    name = "team-a.customer-support-bot-for-the-nordics-2026-11"
    told = rendered(draw(fleet(name), 10), width)
    assert "…" not in told
    words = told.split()
    assert name in words
    assert {"12345.6", "724.1", "23170", "36.2", "181.7", "12345", "1638.4", "36.4%"} <= set(words)


def test_a_name_wider_than_the_terminal_is_folded() -> None:
    name = "x" * 128
    told = rendered(FittedTable((Column("vFM"), Column("jobs/s")), [[name, "1638.4"]]), 80)
    assert told.count("x") == 128
    assert "1638.4" in told


@pytest.mark.parametrize("width", WIDTHS)
def test_vfms_are_one_line_each(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = listed(width, monkeypatch, [listing(name) for name in NAMES])
    lines = told.splitlines()
    assert len(lines) <= 2 + len(NAMES)
    for name in NAMES:
        (line,) = (line for line in lines if name in line)
        assert "2500, first 500, next 80" in line
        assert "serving" in line
        assert "generation" in line
    assert "…" not in told
    if width >= 140:
        assert told.count("0123456789abcdef") == told.count("4096") == told.count("20000") == len(NAMES)


@pytest.mark.parametrize("width", WIDTHS)
def test_why_a_version_was_refused_takes_more_lines_and_is_not_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "adapter: DoRA is not supported, [use] LoRA"
    told = listed(
        width, monkeypatch, [listing("stars", status="failed", error=Refusal(code="package_rejected", message=why))]
    )
    assert "…" not in told
    for word in ("stars", "2500, first 500, next 80", "DoRA", "supported,", "[use]", "LoRA)"):
        assert word in told


def listing(name: str, status: str = "serving", error: Refusal | None = None) -> VfmInfo:
    return VfmInfo(
        name=name, backbone="qwen3-0.6b", status=status, version="0123456789abcdef", error=error, head=Generation(), heads={},
        weight=2.5, limits=Limits(rate=20000.0), slo=Slo(latency_ms=2500, ttft_ms=500, inter_token_ms=80),
    )  # fmt: skip


def listed(width: int, monkeypatch: pytest.MonkeyPatch, vfms: list[VfmInfo]) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    monkeypatch.setattr(show, "out", console)
    show.print_vfms(vfms, len(vfms))
    return console.export_text()
