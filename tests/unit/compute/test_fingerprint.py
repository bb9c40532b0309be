"""The fingerprint of a backbone's files: what it sees, and what it must not mind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.fingerprint import digest_weights, take_fingerprint
from fmplex_worker.backbones.loading import load_backbone
from tests.support import tiny

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def taken(folder: Path, **spec: str) -> Fingerprint:
    return take_fingerprint(load_backbone(BackboneSpec(name="b", model=str(folder), **spec), "cpu"))  # type: ignore[arg-type]


def change_number(folder: Path, name: str, at: int) -> None:
    """Change one number of one tensor by the least there is."""
    tensors = load_file(folder / WEIGHTS)
    flat = tensors[name].view(-1)
    flat[at] = torch.nextafter(flat[at], torch.tensor(torch.inf))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=8))


def test_a_copy_elsewhere_is_the_same(saved: Path, model: Path) -> None:
    assert taken(saved).differences(taken(model)) == []
    assert taken(saved).digest == taken(model).digest


@pytest.mark.parametrize(
    ("name", "at"), [("embeddings.word_embeddings.weight", 0), ("encoder.layer.1.output.dense.bias", -1)]
)
def test_one_number_of_the_weights_is_seen(saved: Path, model: Path, name: str, at: int) -> None:
    change_number(model, name, at)
    assert taken(saved).differences(taken(model)) == ["weights"]


def test_what_the_configuration_says_is_seen_and_how_it_says_it_is_not(saved: Path, model: Path) -> None:
    edit(model / "config.json", transformers_version="0.0", _name_or_path="/elsewhere")
    assert taken(saved).differences(taken(model)) == []
    edit(model / "config.json", layer_norm_eps=1e-3)
    assert taken(saved).differences(taken(model)) == ["config"]


def test_the_tokenizer_is_seen(saved: Path, model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None  # upper case is no longer made lower
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert taken(saved).differences(taken(model)) == ["tokenizer"]


def test_files_that_nobody_loads_do_not_matter(saved: Path, model: Path) -> None:
    (model / "README.md").write_text("read me")
    (model / "optimizer.safetensors").write_bytes(b"x")
    assert taken(saved).differences(taken(model)) == []


def test_the_dtype_is_that_of_the_loaded_weights(saved: Path) -> None:
    assert taken(saved, dtype="auto").digest == taken(saved, dtype="float32").digest  # on a CPU
    half = taken(saved, dtype="bfloat16")
    assert (half.dtype, taken(saved).differences(half)) == ("bfloat16", ["dtype"])


def shard(folder: Path) -> None:
    """Save the weights in two files, as `save_pretrained` does with large models."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors, reverse=True)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def test_in_how_many_files_the_weights_lie_does_not_matter(saved: Path, model: Path) -> None:
    shard(model)
    assert taken(saved).differences(taken(model)) == []


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Tensors larger than all of their samples."""
    g = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(300, 300, generator=g), "b": torch.randn(200_000, generator=g), "c": torch.ones(3)}
    save_file(tensors, tmp_path / WEIGHTS)
    return tmp_path


def sampled(folder: Path) -> str:
    return digest_weights(folder, whole=0)


def test_a_tuned_copy_of_a_large_model_is_seen(large: Path) -> None:
    before = sampled(large)
    for name in ("a", "b", "c"):
        tensors = load_file(large / WEIGHTS)
        save_file(tensors | {name: tensors[name] * 1.0001}, large / WEIGHTS)
        assert sampled(large) != before
        save_file(tensors, large / WEIGHTS)
        assert sampled(large) == before


@pytest.mark.parametrize("at", [0, -1])
def test_the_ends_of_every_tensor_are_among_the_samples(large: Path, at: int) -> None:
    before = sampled(large)
    change_number(large, "b", at)
    assert sampled(large) != before


def test_one_number_between_the_samples_is_not_seen_which_the_docs_say(large: Path) -> None:
    before, whole = sampled(large), digest_weights(large)
    change_number(large, "b", 2_000)  # 8,000 bytes from the start; the second sample begins 53,060 bytes from there
    assert sampled(large) == before
    assert digest_weights(large) != whole


def test_names_types_and_shapes_are_seen_too(large: Path) -> None:
    before = sampled(large)
    tensors = load_file(large / WEIGHTS)
    for other in ({"a2": tensors["a"]}, {"a": tensors["a"].reshape(90_000)}, {"a": tensors["a"].view(torch.int32)}):
        save_file({**other, "b": tensors["b"], "c": tensors["c"]}, large / WEIGHTS)
        assert sampled(large) != before
