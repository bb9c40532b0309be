"""Tables and lines that commands print for people."""

from __future__ import annotations

import json
from textwrap import shorten
from typing import Any

from rich.markup import escape

from fmplex.cli.common import out
from fmplex.columns import Column, FittedTable
from fmplex_broker.specs.vfm import Slo
from fmplex_broker.specs.vfm_info import VfmInfo
from fmplex_broker.wire.tensors import Tensor

_REASON = 48  # characters of why a version was refused; `vfms show` prints all of it
# The numbers say what a narrow terminal leaves out first: the highest.
_VFMS = (
    Column("vFM"), Column("backbone", 4, left=True), Column("head", 1, left=True, words=24), Column("version", 3, left=True),
    Column("status", left=True, words=24), Column("weight", 2), Column("max\npending", 5), Column("rate", 6), Column("target ms"),
)  # fmt: skip


def print_vfms(vfms: list[VfmInfo], total: int) -> None:
    """Print a table of vFMs; `total`: how many there are in all."""
    out.print(FittedTable(_VFMS, map(_vfm, vfms)))
    if total > len(vfms):
        out.print(f"… {total} in all; --match narrows, --all lists them")


def _vfm(v: VfmInfo) -> list[str]:
    why = f" ({shorten(v.error.message, _REASON)})" if v.error else ""
    return [
        v.name, v.backbone, _heads(v), v.version or "-", v.status + why, f"{v.weight or 0:g}",
        str(v.limits.max_pending) if v.limits else "-", f"{v.limits.rate:g}" if v.limits and v.limits.rate else "-",
        _targets(v.slo) if v.slo else "-",
    ]  # fmt: skip


def _heads(v: VfmInfo) -> str:
    if v.head is not None:
        return v.head.kind
    return ", ".join(f"{name} ({head.kind})" for name, head in (v.heads or {}).items()) or "-"


def _targets(slo: Slo) -> str:
    named = (("", slo.latency_ms), ("first ", slo.ttft_ms), ("next ", slo.inter_token_ms))
    return ", ".join(f"{name}{ms}" for name, ms in named if ms) or "-"


def print_output(value: Any, output: Any) -> None:
    """Print one line: an input, at most 60 characters of it, and its output."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    short = text if len(text) <= 60 else text[:57] + "…"
    out.print(f"[dim]{escape(short)}[/]  {escape(_brief(output))}", highlight=False, soft_wrap=True)


def usage_summary(output: dict[str, Any]) -> str:
    """Say how many tokens a generated text took, and why it ended."""
    cached = f" ({output['cached_tokens']} cached)" if output["cached_tokens"] else ""
    return f"{output['prompt_tokens']}{cached} + {output['completion_tokens']} tokens, {output['finish_reason']}"


def printable(text: str) -> str:
    """Return a text without the characters that command a terminal: a model may write any."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def _brief(output: Any) -> str:
    if not isinstance(output, dict):
        return str(output)
    if "finish_reason" in output:
        return f"{printable(output['text'])}  ({usage_summary(output)})"
    parts = []
    for key, value in output.items():
        if isinstance(value, Tensor):
            flat = value.tolist()
            while flat and isinstance(flat[0], list):
                flat = flat[0]
            parts.append(f"{key} {list(value.shape)} [{', '.join(f'{x:.3f}' for x in flat[:4])}, …]")
        elif isinstance(value, float):
            parts.append(f"{key} {value:.4f}")
        elif key == "scores":
            best = sorted(value.items(), key=lambda kv: -kv[1])[:3]
            parts.append(" ".join(f"{label} {score:.2f}" for label, score in best))
        elif key == "spans":
            parts.append(" ".join(f"[{s['text']}]({s['label']})" for s in value) or "no spans")
        else:
            parts.append(f"{key} {value}")
    return "  ".join(parts)
