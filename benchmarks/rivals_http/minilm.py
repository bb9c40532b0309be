"""MiniLM as mosec and LitServe serve it: masks, mean pooling and normalisation by hand, as their examples do.

A batch is sorted by length and run in parts, as `SentenceTransformer.encode` does: on a CPU padding costs more than small parts.
Runs in the peers' own environments: imports nothing of FMplex.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

MAX_TOKENS = 256  # as in configs/minilm.toml


class MiniLM:
    """The model in the folder `PEER_MODEL`, on `PEER_THREADS` torch threads, `PEER_PART` texts at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ["PEER_THREADS"]))
        torch.set_grad_enabled(False)
        folder = os.environ["PEER_MODEL"]
        self._part = int(os.environ["PEER_PART"])
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of one batch, in its order."""
        ids = self._tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors: list[list[float]] = [[]] * len(ids)
        for at in range(0, len(order), self._part):
            part = order[at : at + self._part]
            for i, vector in zip(part, self._run([ids[i] for i in part]), strict=True):
                vectors[i] = vector
        return vectors

    def _run(self, ids: list[list[int]]) -> list[list[float]]:
        batch = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        vectors: list[list[float]] = torch.nn.functional.normalize(pooled, dim=1).tolist()
        return vectors


def answer(model: str, vector: list[float]) -> dict[str, Any]:
    """Put one embedding into OpenAI's shape."""
    return {"object": "list", "model": model, "data": [{"object": "embedding", "index": 0, "embedding": vector}]}


def tuning() -> tuple[int, float]:
    """Read the largest batch and the seconds it may wait to fill, as `benchmarks.rivals_http.servers` sets them."""
    return int(os.environ["PEER_BATCH"]), float(os.environ["PEER_WAIT_MS"]) / 1000
