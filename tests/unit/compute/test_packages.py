"""Heads and versions: what is loaded, and what is refused."""

from __future__ import annotations

import ctypes
import gc
import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.package import Package
from fmplex_broker.specs import heads as specs
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.packed.placing import place_on
from tests.support import tiny

LABELS = ("a", "b", "c")
GOOD = {"weight": torch.ones(3, tiny.HIDDEN)}
HEADS: dict[str, Any] = {"a": specs.Regression(hidden=(8,)), "b": specs.Classification(labels=LABELS)}
CPU = torch.device("cpu")
QUERY = "encoder.layer.0.attention.self.query"


def _held(bert: PackedEngine, digest: str) -> list[weakref.ref[torch.Tensor]]:
    return [weakref.ref(tensor) for tensor in tiny.tensors_of(bert, digest)]


def _query(side: str, *shape: int) -> dict[str, torch.Tensor]:
    return {f"base_model.model.{QUERY}.{side}": torch.full(shape, 0.5)}


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """One of every kind."""
    return {
        "lora": tiny.save_adapter(tmp_path / "lora", tiny.lora(QUERY)),
        "ia3": tiny.save_adapter(tmp_path / "ia3", _query("ia3_l", 32, 1), peft_type="IA3", feedforward_modules=[]),
        "inputs": tiny.save_adapter(
            tmp_path / "inputs", _query("ia3_l", 1, 32), peft_type="IA3", feedforward_modules=["query"]
        ),
        "prompt": tiny.save_prompt(tmp_path / "prompt", 3),
    }


@pytest.mark.parametrize(
    ("head", "rows"),
    [
        (specs.Classification(labels=LABELS), 3),
        (specs.Tagging(labels=LABELS), 4),
        (specs.Regression(), 1),
        (specs.Ranking(), 1),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_head_is_taken(bert: PackedEngine, tmp_path: Path, head: specs.Head, rows: int, bias: bool) -> None:
    digest = tiny.load(bert, head, weights=tiny.head_file(tmp_path / "h", rows, bias=bias))
    assert bert.loaded[digest] == 4 * rows * (tiny.HIDDEN + 1)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "holds nothing; needed: weight (3, 32), bias (3,)"),
        ({"weight": torch.ones(4, tiny.HIDDEN)}, "weight (4, 32)"),
        ({"weight": torch.ones(3, 768)}, "weight (3, 768)"),
        ({"weight": torch.ones(3 * tiny.HIDDEN)}, "weight (96,)"),
        ({**GOOD, "bias": torch.ones(4)}, "bias (4,)"),
        ({**GOOD, "extra": torch.ones(3)}, "extra (3,)"),
        ({"bias": torch.ones(3)}, "holds bias (3,)"),
        ({"weight": torch.full((3, tiny.HIDDEN), math.nan)}, "weight holds NaN"),
        ({**GOOD, "bias": torch.full((3,), math.inf)}, "bias holds NaN or infinite"),
        ({"weight": torch.ones(3, tiny.HIDDEN, dtype=torch.int64)}, "weight is I64; save it as float32"),
    ],
)
def test_head_is_refused(bert: PackedEngine, tmp_path: Path, tensors: dict[str, torch.Tensor], says: str) -> None:
    save_file(tensors, tmp_path / "head.safetensors")
    before = bert.loaded
    with pytest.raises(PackageRejected) as caught:
        tiny.load(bert, specs.Classification(labels=LABELS), weights=tmp_path / "head.safetensors")
    assert says in caught.value.message
    assert caught.value.field == "head"
    assert bert.loaded == before


def test_head_that_is_missing_or_broken(bert: PackedEngine, tmp_path: Path) -> None:
    with pytest.raises(PackageRejected, match=r"needs head\.safetensors"):
        tiny.load(bert, specs.Regression())
    (tmp_path / "h").write_bytes(b"not tensors")
    with pytest.raises(PackageRejected, match="not a whole safetensors file"):
        tiny.load(bert, specs.Regression(), weights=tmp_path / "h")


def test_first_token_of_a_causal_backbone(engine_of: Callable[[str], PackedEngine]) -> None:
    llama = engine_of("llama")
    with pytest.raises(PackageRejected, match="use 'last'") as caught:
        tiny.load(llama, specs.Embedding(pooling="cls"))
    assert caught.value.field == "head.pooling"
    tiny.load(llama, specs.Embedding(pooling="last"))


def test_package_for_another_backbone(bert: PackedEngine) -> None:
    spec = VfmSpec(name="v", backbone="other", head=specs.Embedding())
    with pytest.raises(PackageRejected, match="made for backbone 'other', this worker hosts 'tiny'"):
        bert.fit(Package(spec, "d", {}))


def test_load_again_and_unload(bert: PackedEngine) -> None:
    package = tiny.package(specs.Embedding())
    for _ in range(2):
        bert.load(bert.fit(package))
    assert bert.loaded[package.digest] == 0
    bert.unload(package.digest)
    bert.unload(package.digest)
    assert package.digest not in bert.loaded


@pytest.mark.parametrize("kind", ["lora", "ia3", "inputs", "prompt"])
def test_a_version_goes_to_a_device_whole(
    bert: PackedEngine, adapters: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """What is computed with the copies is the same."""
    weights = tiny.stack_file(tmp_path / "heads", HEADS)
    digest = tiny.load(bert, heads=HEADS, weights=weights, adapter=adapters[kind])
    want = tiny.run(bert, (digest, "the cat"))
    here = bert._versions.get(digest)
    assert here is not None
    assert here.adapter is not None
    count, copied = len(_held(bert, digest)), list[torch.Tensor]()

    def place(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(place_on(CPU)(tensor).clone())
        return copied[-1]

    heads = {name: head.placed(place) for name, head in here.heads.items()}
    there = replace(here, heads=heads, adapter=here.adapter.placed(place))
    bert.unload(digest)
    bert.load(there)
    assert tiny.run(bert, (digest, "the cat")) == want
    assert len(copied) == count
    bert.unload(digest)


def test_views_of_one_storage_are_copied_together() -> None:
    base = torch.arange(24.0).view(2, 3, 4)
    views = [base[0].t(), base[1], torch.ones(3)]
    there = place_on(torch.device("meta"))
    placed = [there(view) for view in views]
    assert [(p.shape, p.stride(), p.storage_offset()) for p in placed] == [
        (v.shape, v.stride(), v.storage_offset()) for v in views
    ]
    assert placed[0]._base is placed[1]._base is not placed[2]._base
    assert all(torch.equal(place_on(CPU)(view), view) for view in views)


def test_loading_while_passes_run(bert: PackedEngine, tmp_path: Path) -> None:
    """A loader thread comes and goes with versions; outputs of the passes beside it stay bit for bit the same."""
    digest = tiny.load(bert, tiny.FEATURES)
    (text,) = tiny.ids(30)
    want = tiny.features(bert, (digest, text))[0]
    adapter = tiny.save_adapter(tmp_path, tiny.lora(QUERY))
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            bert.unload(tiny.load(bert, tiny.FEATURES, adapter=adapter))

    loader = threading.Thread(target=churn)
    loader.start()
    try:
        for _ in range(30):
            assert torch.equal(tiny.features(bert, (digest, text))[0], want)
    finally:
        stop.set()
        loader.join()


def test_unloaded_memory_is_free(bert: PackedEngine, adapters: dict[str, Path], tmp_path: Path) -> None:
    """Every tensor of a version goes with its last job, without waiting for a garbage collection."""
    weights = tiny.stack_file(tmp_path / "heads", HEADS)
    digests = [tiny.load(bert, heads=HEADS, weights=weights, adapter=adapter) for adapter in adapters.values()]
    jobs: list[Any] = bert.prepare([(digest, Request("the cat", {})) for digest in digests])
    tiny.step(bert, jobs)
    held = [_held(bert, digest) for digest in digests]
    assert [len(refs) for refs in held] == [8, 7, 7, 7]
    gc.disable()
    try:
        for digest in digests:
            bert.unload(digest)
        assert all(ref() is not None for refs in held for ref in refs)
        tiny.step(bert, jobs)
        jobs.clear()
        assert all(ref() is None for refs in held for ref in refs)
    finally:
        gc.enable()


def test_unloaded_memory_is_given_back(bert: PackedEngine, tmp_path: Path) -> None:
    """To the system: a large head is there while it is loaded, once and not twice, and then it is not."""
    head = specs.Regression(hidden=(65_536, 256))
    weights = tmp_path / "large"
    widths = [tiny.HIDDEN, *head.hidden, 1]
    shapes = [(f"hidden.{i}.weight" if i < 2 else "weight", b, a) for i, (a, b) in enumerate(pairwise(widths))]
    save_file({name: torch.zeros(b, a) for name, b, a in shapes}, weights)
    size = sum(4 * (a * b + b) for a, b in pairwise(widths))

    def unique() -> int:
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps some of what is free for the next who asks
        return int(psutil.Process().memory_full_info().uss)

    before = unique()
    digest = tiny.load(bert, head, weights=weights)
    assert bert.loaded[digest] == size
    assert size * 0.8 < unique() - before < size * 1.5
    bert.unload(digest)
    assert unique() - before < size * 0.3
