"""What is put around a caller's text, and where spans are found then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from fmplex_broker.specs import heads as specs
from fmplex_broker.specs.heads import InputSpec
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.workloads.encoding.preparing import within
from tests.support import tiny

TEMPLATES = InputSpec(template="the cat: {text} - on", pair_template="house, {text_pair}!")


def test_templates(bert: PackedEngine) -> None:
    """As if the caller had sent the whole text; ids and embeddings stay as they are."""
    told, bare = (tiny.load(bert, tiny.FEATURES, input=spec) for spec in (TEMPLATES, InputSpec()))
    pair = {"text": "the dog", "text_pair": "a mat {text}"}
    ours = tiny.run(bert, (told, "dog {text}"), (told, pair), (told, {"input_ids": [7, 8]}))
    whole = {"text": "the cat: the dog - on", "text_pair": "house, a mat {text}!"}
    want = tiny.run(bert, (bare, "the cat: dog {text} - on"), (bare, whole), (bare, {"input_ids": [7, 8]}))
    assert ours == want


def test_templates_of_a_similarity(bert: PackedEngine) -> None:
    """Each side has its own, as query and passage do."""
    told, bare = (tiny.load(bert, specs.Similarity(), input=spec) for spec in (TEMPLATES, InputSpec()))
    (ours,) = tiny.run(bert, (told, {"text": "dog", "text_pair": "mat"}))
    (want,) = tiny.run(bert, (bare, {"text": "the cat: dog - on", "text_pair": "house, mat!"}))
    assert ours == want


def test_spans_are_in_the_callers_text(bert: PackedEngine, tmp_path: Path) -> None:
    head = specs.Tagging(labels=("a",))
    save_file({"weight": torch.zeros(2, tiny.HIDDEN), "bias": torch.tensor([0.0, 1.0])}, tmp_path / "all")  # label all
    digest = tiny.load(bert, head, weights=tmp_path / "all", input=TEMPLATES)
    text = " Anna sat, on  the mat"
    (result,) = tiny.run(bert, (digest, text))
    (span,) = result["spans"]
    assert (span["start"], span["end"], span["text"]) == (1, len(text), text.strip())
    (cut,) = tiny.run(bert, (digest, "mat " * 100, {"truncate": True}))
    kept = tiny.POSITIONS - 2 - 3  # [CLS] the cat : ... [SEP]
    assert cut["spans"][0]["text"] == ("mat " * kept).strip()


def test_spans_at_the_seams(bert: PackedEngine, tmp_path: Path) -> None:
    """Tokens that reach over an end of the text are clipped, those outside give nothing."""
    head = specs.Tagging(labels=("a",))
    save_file({"weight": torch.zeros(2, tiny.HIDDEN), "bias": torch.tensor([0.0, 1.0])}, tmp_path / "all")
    digest = tiny.load(bert, head, weights=tmp_path / "all", input=InputSpec(template="c{text}nna"))
    (result,) = tiny.run(bert, (digest, "at a"))
    assert [(s["start"], s["end"], s["text"]) for s in result["spans"]] == [(0, 4, "at a")]


def test_offsets_within() -> None:
    offsets = np.array([[0, 0], [0, 3], [3, 6], [6, 8], [8, 12], [12, 13], [0, 0]])
    assert within(offsets, 5, 4).tolist() == [[0, 0], [0, 0], [0, 1], [1, 3], [3, 4], [4, 4], [0, 0]]
