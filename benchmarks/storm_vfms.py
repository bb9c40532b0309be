"""What a storm goes over: a tiny encoder with random weights and vFMs of several heads, with LoRAs and without, no two alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support import tiny
from tests.support.packages import QUERY_VALUE, lora, write_adapter, write_package

TEXTS = ("cat", "the cat sat on the mat", "anna has a dog in paris", "the dog sat on the cat " * 5)
_LAYERS = 2
_HEADS: tuple[tuple[dict[str, Any], int], ...] = (  # with the ranks of their LoRAs
    ({"kind": "classification", "labels": ["one", "two", "three"]}, 4),
    ({"kind": "regression"}, 0),
    ({"kind": "embedding"}, 8),
    ({"kind": "tagging", "labels": ["place", "person"]}, 0),
)


def write_backbone(folder: Path) -> dict[str, Any]:
    """Save the model; return the table `backbone` of a fleet file that hosts it."""
    model = tiny.save_model("bert", folder)
    return {"name": tiny.NAME, "model": str(model), "pass_units": 256, "max_tokens": 64}


def write_vfms(folder: Path, count: int) -> list[Path]:
    """Write so many packages, of each head in turn."""
    return [_write(folder / f"v{number:02}", number) for number in range(count)]


def _write(folder: Path, number: int) -> Path:
    head, rank = _HEADS[number % len(_HEADS)]
    weight = 1.0 + number % 3
    package = write_package(folder, head, backbone=tiny.NAME, seed=number, hidden=tiny.HIDDEN, weight=weight)
    if rank:
        factors = lora(rank, QUERY_VALUE, number, _LAYERS, tiny.HIDDEN)
        write_adapter(folder / "adapter", factors, r=rank, lora_alpha=2 * rank)
    return package
