"""Every head against plain torch, many vFMs in one pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fmplex_broker.errors import NonFiniteOutput
from fmplex_broker.specs import heads as specs
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.heads import running
from fmplex_worker.heads.linear import apply_heads
from fmplex_worker.heads.loading import Layer, LoadedHead
from fmplex_worker.heads.pooling import pool
from fmplex_worker.heads.spans import spans
from tests.support import tiny

TEXTS = ("the cat sat on the mat", "anna", "a dog in the house of paris", "paris and anna on a mat", "the cat")
POOLINGS: tuple[specs.Pooling, ...] = ("mean", "cls", "last")


@pytest.fixture(scope="module")
def model(model_folder: Callable[[str], Path]) -> Any:
    return tiny.reference(model_folder("bert"))


def states(engine: PackedEngine, model: Any, *texts: str) -> torch.Tensor:
    """What transformers makes of a text, or of a text and its pair."""
    encoding = engine._backbone.tokenizer.encode([texts if len(texts) > 1 else texts[0]])[0]  # type: ignore[list-item]
    with torch.no_grad():
        ids, types = (torch.from_numpy(row)[None] for row in (encoding.ids, encoding.types))
        hidden: torch.Tensor = model(input_ids=ids, token_type_ids=types).last_hidden_state[0]
    return hidden


def pooled(hidden: torch.Tensor, how: str) -> torch.Tensor:
    return {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[how]


def vector(result: dict[str, Any]) -> torch.Tensor:
    return torch.from_numpy(result["embedding"].numpy().copy())


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_embedding(bert: PackedEngine, model: Any, pooling: specs.Pooling, normalize: bool) -> None:
    digest = tiny.load(bert, specs.Embedding(pooling=pooling, normalize=normalize))
    results = tiny.run(bert, *((digest, text) for text in TEXTS), (digest, TEXTS[0], {"dimensions": 5}))
    for text, size, result in zip((*TEXTS, TEXTS[0]), [tiny.HIDDEN] * len(TEXTS) + [5], results, strict=True):
        want = pooled(states(bert, model, text), pooling)[:size]
        want = want / want.norm() if normalize else want
        assert tiny.relative(vector(result), want) < 1e-5


def test_all_linear_heads_in_one_pass(bert: PackedEngine, model: Any, tmp_path: Path) -> None:
    """Classifications of several sizes and poolings, multi-label ones, regressions and rankings, owned by many."""
    jobs: list[tuple[str, Any]] = []
    wants: list[Any] = []
    for number, text in enumerate(TEXTS * 4):
        pooling = POOLINGS[number % 3]
        head = _linear_head(number, pooling)
        file = tiny.head_file(tmp_path / f"{number}", _outputs(head), seed=number, bias=number % 2 == 0)
        pair = {"text": text, "text_pair": TEXTS[number % 5]}
        jobs.append((tiny.load(bert, head, weights=file), pair if isinstance(head, specs.Ranking) else text))
        hidden = states(bert, model, *(pair.values() if isinstance(head, specs.Ranking) else (text,)))
        tensors = load_file(file)
        logits = tensors["weight"] @ pooled(hidden, pooling) + tensors.get("bias", torch.zeros(()))
        wants.append(_answer(head, logits))
    for result, want in zip(tiny.run(bert, *jobs), wants, strict=True):
        _assert_close(result, want)


def _linear_head(number: int, pooling: specs.Pooling) -> specs.Head:
    labels = tuple(f"label{i}" for i in range(2 + number % 3))
    match number % 5:
        case 0:
            return specs.Regression(pooling=pooling)
        case 1:
            return specs.Ranking(pooling=pooling)
        case 2:
            return specs.Classification(labels=labels, pooling=pooling, multi_label=True)
        case _:
            return specs.Classification(labels=labels, pooling=pooling)


def _outputs(head: specs.Head) -> int:
    return len(head.labels) if isinstance(head, specs.Classification) else 1


def _answer(head: specs.Head, logits: torch.Tensor) -> dict[str, Any]:
    if isinstance(head, specs.Regression):
        return {"value": logits.item()}
    if isinstance(head, specs.Ranking):
        return {"score": logits.sigmoid().item()}
    assert isinstance(head, specs.Classification)
    if head.multi_label:
        scores = dict(zip(head.labels, logits.sigmoid().tolist(), strict=True))
        return {"labels": [label for label, score in scores.items() if score >= 0.5], "scores": scores}
    scores = dict(zip(head.labels, logits.softmax(0).tolist(), strict=True))
    return {"label": max(scores, key=lambda label: scores[label]), "scores": scores}


def _assert_close(result: Any, want: dict[str, Any]) -> None:
    assert result.keys() == want.keys()
    for key, value in want.items():
        assert result[key] == (
            pytest.approx(value, rel=1e-4, abs=1e-6) if key in ("value", "score", "scores") else value
        )


def test_heads_of_one_shape_are_one_matmul(bert: PackedEngine, tmp_path: Path, monkeypatch: Any) -> None:
    """Whoever owns them and in whatever order they come: each head once, one call per number of outputs."""
    calls: list[tuple[int, list[int], list[int]]] = []

    def spy(rows: torch.Tensor, heads: list[LoadedHead], counts: list[int]) -> torch.Tensor:
        calls.append((len(rows), [head.number for head in heads], counts))
        return apply_heads(rows, heads, counts)

    monkeypatch.setattr(running, "apply_heads", spy)
    made: list[specs.Head] = [
        specs.Regression(),
        specs.Ranking(),
        specs.Classification(labels=("a", "b")),
        specs.Regression(),
    ]
    files = [tiny.head_file(tmp_path / f"{i}", _outputs(head)) for i, head in enumerate(made)]
    digests = [tiny.load(bert, head, weights=file) for head, file in zip(made, files, strict=True)]
    pair = {"text": "cat", "text_pair": "dog"}
    tiny.run(bert, *((digests[i], pair) for i in (3, 0, 2, 1, 0, 3, 3)))
    assert sorted((rows, len(set(heads)), sorted(counts)) for rows, heads, counts in calls) == [
        (1, 1, [1]),
        (6, 3, [1, 2, 3]),
    ]


def test_multi_label_threshold(bert: PackedEngine, tmp_path: Path) -> None:
    file = tmp_path / "head"
    save_file({"weight": torch.zeros(3, tiny.HIDDEN), "bias": torch.tensor([0.0, -0.01, 0.01])}, file)
    digest = tiny.load(bert, specs.Classification(labels=("a", "b", "c"), multi_label=True), weights=file)
    (result,) = tiny.run(bert, (digest, "cat", {"top_k": 1}))
    assert result["labels"] == ["a", "c"]
    assert list(result["scores"]) == ["c"]


def test_top_k(bert: PackedEngine, tmp_path: Path) -> None:
    head = specs.Classification(labels=("a", "b", "c", "d"))
    digest = tiny.load(bert, head, weights=tiny.head_file(tmp_path / "h", 4))
    whole, two, many = tiny.run(bert, (digest, "cat"), (digest, "cat", {"top_k": 2}), (digest, "cat", {"top_k": 9}))
    ranked = sorted(whole["scores"].items(), key=lambda item: -item[1])
    assert list(two["scores"]) == [label for label, _ in ranked[:2]]
    assert two["label"] == whole["label"] == ranked[0][0]
    assert len(many["scores"]) == 4


def test_similarity(bert: PackedEngine, model: Any) -> None:
    digest = tiny.load(bert, specs.Similarity(pooling="mean"))
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[2]), (TEXTS[3], TEXTS[0])]
    results = tiny.run(bert, *((digest, {"text": a, "text_pair": b}) for a, b in pairs))
    for (a, b), result in zip(pairs, results, strict=True):
        left, right = (pooled(states(bert, model, text), "mean") for text in (a, b))
        assert result == {"score": pytest.approx(float(torch.cosine_similarity(left, right, 0)), abs=1e-5)}


def test_features(bert: PackedEngine, model: Any) -> None:
    digest = tiny.load(bert, tiny.FEATURES)
    for text, result in zip(TEXTS, tiny.run(bert, *((digest, text) for text in TEXTS)), strict=True):
        assert tiny.relative(torch.from_numpy(result["features"].numpy().copy()), states(bert, model, text)) < 1e-5


def test_tagging(bert: PackedEngine, model: Any, tmp_path: Path) -> None:
    """Two taggers of one shape and one of another; spans are checked token by token against plain torch."""
    sizes = (2, 2, 1)
    labels = [tuple(f"t{i}" for i in range(n)) for n in sizes]
    files = [tiny.head_file(tmp_path / f"{i}", 1 + n, seed=i, bias=False) for i, n in enumerate(sizes)]
    digests = [
        tiny.load(bert, specs.Tagging(labels=known), weights=file) for known, file in zip(labels, files, strict=True)
    ]
    jobs = [(digests[i % 3], f"  {text.title()}, zebra!") for i, text in enumerate(TEXTS * 2)]
    found = 0
    for i, ((_, text), result) in enumerate(zip(jobs, tiny.run(bert, *jobs), strict=True)):
        tensors = load_file(files[i % 3])
        shares = (states(bert, model, text) @ tensors["weight"].t()).softmax(1)
        offsets = bert._backbone.tokenizer.encode([text], offsets=True)[0].offsets
        assert offsets is not None
        covered = [""] * len(text)  # label of every character that a token covers
        for (first, last), share in list(zip(offsets.tolist(), shares, strict=True))[1:-1]:
            best = int(share.argmax())
            covered[first:last] = [labels[i % 3][best - 1] if best else "-"] * (last - first)
        for span in result["spans"]:
            assert span["text"] == text[span["start"] : span["end"]] == span["text"].strip()
            assert set(covered[span["start"] : span["end"]]) - {""} == {span["label"]}
            assert 0 < span["score"] <= 1
            for c in range(span["start"], span["end"]):
                covered[c] = ""
        assert set(covered) <= {"", "-"}  # nothing labelled is left out
        found += len(result["spans"])
    assert found > 5


@pytest.mark.parametrize(
    ("offsets", "best", "want"),
    [
        (
            [(0, 0), (0, 4), (4, 6), (7, 10), (0, 0)],
            [1, 1, 1, 1, 1],
            [(0, 10, "a")],
        ),  # sub-words, white space, specials
        ([(0, 4), (4, 6), (7, 10)], [1, 2, 1], [(0, 4, "a"), (4, 6, "b"), (7, 10, "a")]),
        ([(0, 4), (4, 6), (7, 10)], [1, 0, 1], [(0, 4, "a"), (7, 10, "a")]),
        ([(0, 6), (6, 10)], [0, 2], [(7, 10, "b")]),  # the tokenizer counts a space to the word after it
        ([(6, 7)], [1], []),  # nothing but white space
        ([], [], []),
    ],
)
def test_spans(offsets: list[tuple[int, int]], best: list[int], want: list[tuple[int, int, str]]) -> None:
    made = spans("abcdef hij", offsets, best, [0.5] * len(best), ("a", "b"))
    assert [(s["start"], s["end"], s["label"]) for s in made] == want
    assert all(s["text"] == "abcdef hij"[s["start"] : s["end"]] and s["score"] == 0.5 for s in made)


def test_span_score_is_the_mean() -> None:
    (span,) = spans("abcdef", [(0, 2), (2, 6)], [1, 1], [0.5, 0.9], ("a",))
    assert span["score"] == pytest.approx(0.7)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_pooling(data: st.DataObject) -> None:
    """Any of the texts, in any order, some several times."""
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    bounds = [sum(lengths[:i]) for i in range(len(lengths))]
    hidden = torch.randn(sum(lengths), 4)
    texts = data.draw(st.lists(st.sampled_from([*zip(bounds, lengths, strict=True)]), max_size=12))
    how = [data.draw(st.sampled_from(POOLINGS)) for _ in texts]
    rows = pool(hidden, [start for start, _ in texts], [length for _, length in texts], how)
    for row, (start, length), kind in zip(rows, texts, how, strict=True):
        torch.testing.assert_close(row, pooled(hidden[start : start + length], kind))


@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=7), outputs=st.sampled_from([1, 3, 65]))
@settings(max_examples=40, deadline=None)
def test_batched_heads(counts: list[int], outputs: int) -> None:
    """However the counts are skewed, and whichever way is chosen, each row meets its own head."""
    head = specs.Regression()
    layers = [Layer(torch.randn(outputs, 8), torch.randn(outputs)) for _ in counts]
    heads = [LoadedHead(i, head, (layer,)) for i, layer in enumerate(layers)]
    rows = torch.randn(sum(counts), 8)
    owners = [layer for layer, n in zip(layers, counts, strict=True) for _ in range(n)]
    want = torch.stack([layer.weight @ row + layer.bias for layer, row in zip(owners, rows, strict=True)])
    torch.testing.assert_close(apply_heads(rows, heads, counts), want, rtol=1e-4, atol=1e-5)


def test_overflowing_head_fails_its_job_alone(bert: PackedEngine, tmp_path: Path) -> None:
    """Finite weights can still give infinity; a neighbour with a head of the same shape must not notice."""
    head = specs.Classification(labels=("a", "b"))
    good = tiny.load(bert, head, weights=tiny.head_file(tmp_path / "good", 2))
    huge = tmp_path / "huge"
    save_file({"weight": torch.full((2, tiny.HIDDEN), 3e38)}, huge)
    bad = tiny.load(bert, head, weights=huge)
    alone = tiny.run(bert, (good, "cat"), (good, "dog"))
    mixed = tiny.run(bert, (good, "cat"), (bad, "cat"), (good, "dog"))
    assert isinstance(mixed[1], NonFiniteOutput)
    for i, j in ((0, 0), (2, 1)):
        _assert_close(mixed[i], alone[j])
