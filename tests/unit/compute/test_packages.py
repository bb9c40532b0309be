"""Heads and versions: what is loaded, and what is refused."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fmplex_broker import heads as specs
from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages import Package
from fmplex_broker.specs import VfmSpec
from fmplex_worker.engines.encoder import EncoderEngine
from tests.unit.compute import tiny

LABELS = ("a", "b", "c")
GOOD = {"weight": torch.ones(3, tiny.HIDDEN)}


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
def test_head_is_taken(bert: EncoderEngine, tmp_path: Path, head: specs.Head, rows: int, bias: bool) -> None:
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
def test_head_is_refused(bert: EncoderEngine, tmp_path: Path, tensors: dict[str, torch.Tensor], says: str) -> None:
    save_file(tensors, tmp_path / "head.safetensors")
    before = bert.loaded
    with pytest.raises(PackageRejected) as caught:
        tiny.load(bert, specs.Classification(labels=LABELS), weights=tmp_path / "head.safetensors")
    assert says in caught.value.message
    assert caught.value.field == "head"
    assert bert.loaded == before


def test_head_that_is_missing_or_broken(bert: EncoderEngine, tmp_path: Path) -> None:
    with pytest.raises(PackageRejected, match=r"needs head\.safetensors"):
        tiny.load(bert, specs.Regression())
    (tmp_path / "h").write_bytes(b"not tensors")
    with pytest.raises(PackageRejected, match="not a whole safetensors file"):
        tiny.load(bert, specs.Regression(), weights=tmp_path / "h")


def test_first_token_of_a_causal_backbone(engine_of: Callable[[str], EncoderEngine]) -> None:
    llama = engine_of("llama")
    with pytest.raises(PackageRejected, match="use 'last'") as caught:
        tiny.load(llama, specs.Embedding(pooling="cls"))
    assert caught.value.field == "head.pooling"
    tiny.load(llama, specs.Embedding(pooling="last"))


def test_package_for_another_backbone(bert: EncoderEngine) -> None:
    spec = VfmSpec(name="v", backbone="other", head=specs.Embedding())
    with pytest.raises(PackageRejected, match="made for backbone 'other', this worker hosts 'tiny'"):
        bert.load(Package(spec, "d", {}), "d")


def test_load_again_and_unload(bert: EncoderEngine) -> None:
    package = tiny.package(specs.Embedding())
    bert.load(package, package.digest)
    bert.load(package, package.digest)
    assert bert.loaded[package.digest] == 0
    bert.unload(package.digest)
    bert.unload(package.digest)
    assert package.digest not in bert.loaded


def test_loading_while_passes_run(bert: EncoderEngine, tmp_path: Path) -> None:
    """A loader thread comes and goes with versions; outputs of the passes beside it stay bit for bit the same."""
    digest = tiny.load(bert, tiny.FEATURES)
    (text,) = tiny.ids(30)
    want = tiny.features(bert, (digest, text))[0]
    adapter = tiny.save_adapter(tmp_path, tiny.lora("encoder.layer.0.attention.self.query"))
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
