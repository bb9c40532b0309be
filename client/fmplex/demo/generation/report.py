"""The figures of `fmplex demo --generation`, as tables and as JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fmplex.demo.generation.answers import Answer
from fmplex.demo.generation.measuring import GenerationSharing
from fmplex.demo.generation.voices import VOICES, unrecognised


@dataclass(slots=True)
class GenerationReport:
    """All that the demo measured. Memory in bytes; `answers` by vFM, as they were shown; `trained`: how many models."""

    trained: int = 0
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    sharing: GenerationSharing | None = None
    memory: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def check(self, voices: bool) -> None:
        """Add to `failures` whatever is not as promised. `voices`: that each is recognised in its texts, too."""
        for voice in VOICES:
            answers = self.answers.get(voice.name, [])
            if not answers or not all(answer.ended and answer.tokens for answer in answers):
                self.failures.append(f"{voice.name}: some text did not come")
        if voices:
            texts = {name: [answer.text for answer in answers] for name, answers in self.answers.items()}
            self.failures += [f"{name}: its voice cannot be told from what it says" for name in unrecognised(texts)]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values: what `--report` writes."""
        m, s = self.memory, self.sharing
        return {
            "ok": not self.failures,
            "failures": self.failures,
            "vfms": {voice.name: {"lora_rank": voice.rank, **self._vfm_figures(voice.name)} for voice in VOICES},
            "memory": m,
            "ratios": {
                "tokens_s_together_over_in_turn": s.ratio if s else None,
                "weights_copies_over_shared": m["weights_copies"] / m["weights_shared"] if m else None,
                "process_memory_copies_over_shared": m["process_copies"] / m["process_shared"] if m else None,
            },
            "tokens_s": {"together": s.together if s else None, "in_turn": s.in_turn if s else None},
            "trained": self.trained,
            "seconds": {"train": self.train_seconds, "total": self.total_seconds},
        }

    def _vfm_figures(self, vfm: str) -> dict[str, Any]:
        answers = self.answers.get(vfm, [])
        return {
            "texts": [answer.text for answer in answers],
            "tokens": sum(answer.tokens for answer in answers),
            "tokens_s": statistics.median(answer.rate for answer in answers) if answers else None,
            "ttft_ms": 1000 * statistics.median(answer.ttft for answer in answers) if answers else None,
        }

    def show(self, out: Console) -> None:
        """Print the tables, and what failed."""
        if self.answers:
            self._show_vfms(out)
        if self.memory and self.sharing:
            self._show_totals(out)
        for failure in dict.fromkeys(self.failures):
            out.print(f"[bold red]failed[/]: {escape(failure)}")

    def _show_vfms(self, out: Console) -> None:
        table = Table(box=None, header_style="bold")
        table.add_column("vFM", no_wrap=True)
        for column in ("LoRA", "texts", "tokens", "tokens/s", "TTFT ms"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, v in self.to_json()["vfms"].items():
            rank = f"r={v['lora_rank']}" if v["lora_rank"] else "-"
            rate, ttft = (f"{v[key]:.0f}" if v[key] is not None else "-" for key in ("tokens_s", "ttft_ms"))
            table.add_row(name, rank, str(len(v["texts"])), str(v["tokens"]), rate, ttft)
        out.print()
        out.print(table)

    def _show_totals(self, out: Console) -> None:
        assert self.sharing is not None
        m, s, ratios, n = self.memory, self.sharing, self.to_json()["ratios"], len(VOICES)
        table = Table(box=None, header_style="bold")
        for column in ("", "one shared decoder", f"{n} copies /\none after the other", "ratio"):  # fits 80 characters
            table.add_column(column, justify="right" if column else "left", overflow="fold")
        for what, key, ratio in (
            ("weights, LoRAs too", "weights", ratios["weights_copies_over_shared"]),
            ("process memory (unique)", "process", ratios["process_memory_copies_over_shared"]),
        ):
            table.add_row(what, _mib(m[f"{key}_shared"]), _mib(m[f"{key}_copies"]), f"{ratio:.1f} x less")
        together, in_turn = f"{s.together:.0f} tokens/s", f"{s.in_turn:.0f} tokens/s"
        table.add_row(f"{s.texts} texts of all vFMs", together, in_turn, f"{s.ratio:.1f} x more")
        out.print()
        out.print(table)
        trained = f"training {self.train_seconds:.0f} s, " if self.trained else ""
        out.print(f"{trained}all {self.total_seconds:.0f} s", highlight=False)


def _mib(value: int) -> str:
    return f"{value / 2**20:.1f} MiB"
