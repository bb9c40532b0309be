"""Heads of several layers and vFMs of several heads, in common passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fmplex_broker.errors import InvalidInput, NonFiniteOutput, PackageRejected
from fmplex_broker.specs import heads as specs
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.heads import running
from fmplex_worker.heads.linear import apply_heads
from fmplex_worker.heads.loading import Layer, LoadedHead
from tests.support import tiny

ACTIVATIONS: dict[specs.Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
}
TEXTS = ("the cat sat on the mat", "anna", "a dog in the house of paris", "paris and anna on a mat")


def run_stack(head: Any, tensors: Mapping[str, torch.Tensor], rows: torch.Tensor, stem: str = "") -> torch.Tensor:
    """A head's layers from their definition: rows `[n, hidden]` → `[n, outputs]`."""
    if getattr(head, "normalize", False):
        rows = rows / rows.norm(dim=-1, keepdim=True)
    for i in range(len(head.hidden)):
        rows = rows @ tensors[f"{stem}hidden.{i}.weight"].t() + tensors.get(f"{stem}hidden.{i}.bias", 0)
        rows = ACTIVATIONS[head.activation](rows)
    return rows @ tensors[f"{stem}weight"].t() + tensors.get(f"{stem}bias", 0)


def features(engine: PackedEngine, *values: Any) -> list[torch.Tensor]:
    digest = tiny.load(engine, tiny.FEATURES)
    results = tiny.run(engine, *((digest, value) for value in values))
    return [torch.from_numpy(r["features"].numpy().copy()) for r in results]


STACKS: list[Any] = [
    specs.Regression(hidden=(8,)),
    specs.Regression(hidden=(8,), activation="tanh", normalize=True),
    specs.Regression(hidden=(8,), pooling="cls"),
    specs.Regression(normalize=True),
    specs.Regression(hidden=(70, 5, 9), activation="gelu", pooling="last"),
    specs.Ranking(hidden=(8,), normalize=True),
    specs.Ranking(hidden=(8,), activation="tanh", pooling="mean"),
]


def test_stacks(bert: PackedEngine, tmp_path: Path) -> None:
    """Heads of many forms, twice each with weights of their own, each against its definition."""
    jobs, wants = [], []
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    (states,) = features(bert, pair)
    pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}
    for i, head in enumerate(STACKS * 2):
        file = tiny.stack_file(tmp_path / str(i), {"": head}, seed=i)
        jobs.append((tiny.load(bert, head, weights=file), pair))
        value = run_stack(head, load_file(file), pooled[head.pooling or "mean"][None]).item()
        wants.append(torch.tensor(value).sigmoid().item() if head.kind == "ranking" else value)
    for result, want in zip(tiny.run(bert, *jobs, *jobs[:3]), wants + wants[:3], strict=True):
        assert next(iter(result.values())) == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_stacked_classification_and_tagging(bert: PackedEngine, tmp_path: Path) -> None:
    head = specs.Classification(labels=("a", "b", "c"), hidden=(6, 7), activation="gelu", normalize=True)
    tagging = specs.Tagging(labels=("a", "b"), hidden=(9,), activation="tanh")
    files = {h.kind: tiny.stack_file(tmp_path / h.kind, {"": h}, seed=3) for h in (head, tagging)}
    digests = [tiny.load(bert, h, weights=files[h.kind]) for h in (head, tagging)]
    classified, tagged = tiny.run(bert, *((digest, TEXTS[0]) for digest in digests))
    (states,) = features(bert, TEXTS[0])
    shares = run_stack(head, load_file(files["classification"]), states.mean(0)[None])[0].softmax(0)
    assert list(classified["scores"].values()) == pytest.approx(shares.tolist(), rel=1e-4)
    best = run_stack(tagging, load_file(files["tagging"]), states).argmax(1)[1:-1].tolist()
    words = TEXTS[0].split()
    labels = {word: "-ab"[kind] for word, kind in zip(words, best, strict=True)}
    assert labels
    for span in tagged["spans"]:
        assert {labels[word] for word in span["text"].split()} == {span["label"]}
    assert sum(len(span["text"].split()) for span in tagged["spans"]) == sum(kind != 0 for kind in best) > 0


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=6), hidden=st.sampled_from([(3,), (70, 4), (2, 2, 2)]))
@settings(max_examples=30, deadline=None)
def test_batched_stacks(counts: list[int], hidden: tuple[int, ...]) -> None:
    """Whichever way a layer is run, each row meets its own head."""
    head = specs.Regression(hidden=hidden, activation="tanh")
    widths = [8, *hidden, 1]
    stacks = [[Layer(torch.randn(b, a), torch.randn(b)) for a, b in pairwise(widths)] for _ in counts]
    rows = torch.randn(sum(counts), 8)
    want = []
    owners = [stack for stack, n in zip(stacks, counts, strict=True) for _ in range(n)]
    for stack, row in zip(owners, rows, strict=True):
        for layer in stack[:-1]:
            row = torch.tanh(layer.weight @ row + layer.bias)
        want.append(stack[-1].weight @ row + stack[-1].bias)
    made = apply_heads(rows, [LoadedHead(i, head, tuple(stack)) for i, stack in enumerate(stacks)], counts)
    torch.testing.assert_close(made, torch.stack(want), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden.1.weight": torch.ones(6, 6)}, "hidden.1.weight (7, 6)"),
        ({"hidden.2.weight": torch.ones(6, 6)}, "hidden.2.weight"),
        ({"hidden.0.weight": None}, "hidden.0.weight (6, 32)"),
        ({"hidden.1.bias": torch.full((7,), torch.nan)}, "hidden.1.bias holds NaN"),
    ],
)
def test_stack_is_refused(bert: PackedEngine, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    head = specs.Classification(labels=("a", "b", "c"), hidden=(6, 7))
    tensors = load_file(tiny.stack_file(tmp_path / "good", {"": head})) | change
    save_file({name: t for name, t in tensors.items() if t is not None}, tmp_path / "bad")
    with pytest.raises(PackageRejected) as caught:
        tiny.load(bert, head, weights=tmp_path / "bad")
    assert says in caught.value.message
    assert caught.value.field == "head"


# --- several heads ---------------------------------------------------------------------------------------------------

SEVERAL: dict[str, Any] = {
    "topic": specs.Classification(labels=("x", "y", "z"), pooling="cls"),
    "tone": specs.Classification(labels=("good", "bad", "odd"), multi_label=True, normalize=True),
    "score": specs.Regression(hidden=(8,)),
    "vector": specs.Embedding(),
    "first": specs.Embedding(pooling="cls", normalize=False),
    "names": specs.Tagging(labels=("a", "b")),
    "raw": specs.Features(),
}
LORA = "encoder.layer.0.attention.self.query"


def apart(file: Path, heads: Mapping[str, Any], folder: Path) -> dict[str, Path | None]:
    """The tensors of each head in a file of its own."""
    files: dict[str, Path | None] = {}
    for name in heads:
        own = {key.removeprefix(f"{name}."): t for key, t in load_file(file).items() if key.startswith(f"{name}.")}
        files[name] = folder / f"{name}.own" if own else None
        if own:
            save_file(own, folder / f"{name}.own")
    return files


def close(ours: Any, theirs: Any) -> None:
    """Equal but for the last bits."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            close(ours[key], theirs[key])
    elif isinstance(theirs, list):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    elif hasattr(theirs, "numpy"):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)
    else:
        assert ours == theirs


def test_several_heads_are_as_many_vfms(bert: PackedEngine, tmp_path: Path) -> None:
    file = tiny.stack_file(tmp_path / "heads", SEVERAL)
    adapter = tiny.save_adapter(tmp_path / "adapter", tiny.lora(LORA))
    whole = tiny.load(bert, heads=SEVERAL, weights=file, adapter=adapter)
    own = apart(file, SEVERAL, tmp_path)
    alone = {name: tiny.load(bert, head, weights=own[name], adapter=adapter) for name, head in SEVERAL.items()}
    params: list[dict[str, Any]] = [
        {},
        {"top_k": 1},
        {"dimensions": 7},
        {"top_k": 2, "dimensions": 3, "truncate": True},
    ]
    results = tiny.run(bert, *((whole, text, given) for text, given in zip(TEXTS, params, strict=True)))
    takes = {"topic": "top_k", "tone": "top_k", "vector": "dimensions", "first": "dimensions"}
    for text, given_, result in zip(TEXTS, params, results, strict=True):
        assert list(result) == list(SEVERAL)
        for name, digest in alone.items():
            theirs = {key: value for key, value in given_.items() if key in ("truncate", takes.get(name))}
            close(result[name], tiny.run(bert, (digest, text, theirs))[0])
    assert bert.loaded[whole] == sum(bert.loaded[digest] for digest in alone.values()) - 6 * 2 * 4 * 4 * tiny.HIDDEN


def test_several_heads_are_one_encode(bert: PackedEngine, tmp_path: Path, monkeypatch: Any) -> None:
    """One text in the row, and heads of one form in one matmul, whichever vFM they are of."""
    heads: dict[str, Any] = {"a": specs.Regression(), "b": specs.Regression(), "c": specs.Regression(pooling="cls")}
    digests = [tiny.load(bert, heads=heads, weights=tiny.stack_file(tmp_path / str(i), heads, i)) for i in range(2)]
    calls = []

    def spy(rows: torch.Tensor, loaded: Any, counts: list[int]) -> torch.Tensor:
        calls.append((len(rows), len(loaded)))
        return apply_heads(rows, loaded, counts)

    monkeypatch.setattr(running, "apply_heads", spy)
    jobs: list[Any] = bert.prepare([(digest, Request("cat", {})) for digest in (*digests, digests[0])])
    assert [job.units for job in jobs] == [3, 3, 3]
    assert jobs[0].head == jobs[2].head != jobs[1].head
    results = tiny.step(bert, jobs)
    assert calls == [(9, 6)]
    assert results[0] == results[2] != results[1]


def test_a_broken_head_fails_its_job(bert: PackedEngine, tmp_path: Path) -> None:
    heads = {"good": specs.Embedding(), "bad": specs.Regression()}
    save_file({"bad.weight": torch.full((1, tiny.HIDDEN), 3e38)}, tmp_path / "head")
    broken = tiny.load(bert, heads=heads, weights=tmp_path / "head")
    first, second = tiny.run(bert, (broken, "cat"), (tiny.load(bert, specs.Embedding()), "cat"))
    assert isinstance(first, NonFiniteOutput)
    assert "embedding" in second


def test_inputs_of_several_heads(bert: PackedEngine, tmp_path: Path) -> None:
    """What any of them needs, the input must have; a parameter must be for one of them."""
    tagging: dict[str, Any] = {"v": specs.Embedding(), "t": specs.Tagging(labels=("a",))}
    ranking: dict[str, Any] = {"v": specs.Embedding(), "r": specs.Ranking()}
    t, r = (tiny.load(bert, heads=h, weights=tiny.stack_file(tmp_path / "h", h)) for h in (tagging, ranking))
    wrong: list[tuple[str, Any, dict[str, Any], str]] = [
        (t, {"input_ids": [7]}, {}, "input.input_ids"),
        (t, {"text": "cat", "text_pair": "dog"}, {}, "input.text_pair"),
        (t, "cat", {"top_k": 1}, "params.top_k"),
        (r, "cat", {}, "input.text_pair"),
    ]
    for digest, value, params, field in wrong:
        (error,) = bert.prepare([(digest, Request(value, params))])
        assert isinstance(error, InvalidInput)
        assert error.field == field
    good = tiny.run(
        bert, (t, "cat", {"dimensions": 3}), (r, {"text": "cat", "text_pair": "dog"}), (r, {"input_ids": [7]})
    )
    assert [sorted(result) for result in good] == [["t", "v"], ["r", "v"], ["r", "v"]]
    assert good[0]["v"]["embedding"].shape == (3,)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a.weight": (1, 32)}, "b.weight (1, 32)"),
        ({"a.weight": (1, 32), "b.weight": (1, 32), "weight": (1, 32)}, "weight (1, 32)"),
        ({"a.weight": (1, 32), "b.weight": (1, 16)}, "b.weight (1, 16)"),
    ],
)
def test_tensors_of_several_heads(
    bert: PackedEngine, tmp_path: Path, tensors: dict[str, tuple[int, ...]], says: str
) -> None:
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "head")
    with pytest.raises(PackageRejected) as caught:
        tiny.load(bert, heads={"a": specs.Regression(), "b": specs.Regression()}, weights=tmp_path / "head")
    assert says in caught.value.message


def test_names_that_clash(bert: PackedEngine, tmp_path: Path) -> None:
    """A head may be called what another calls one of its layers; whose tensor it is would be a guess."""
    heads = {"a": specs.Regression(hidden=(1,)), "a.hidden.0": specs.Regression()}
    with pytest.raises(PackageRejected, match=r"two heads both call a tensor 'a\.hidden\.0\.bias'"):
        tiny.load(bert, heads=heads, weights=tiny.stack_file(tmp_path / "h", heads))


def test_several_heads_on_a_causal_backbone(engine_of: Callable[[str], PackedEngine]) -> None:
    with pytest.raises(PackageRejected, match="use 'last'") as caught:
        tiny.load(engine_of("llama"), heads={"a": specs.Embedding(pooling="last"), "b": specs.Embedding(pooling="cls")})
    assert caught.value.field == "heads.b.pooling"
