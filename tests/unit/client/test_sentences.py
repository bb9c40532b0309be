"""What sentence-transformers saves gives the vectors that sentence-transformers gives, or is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

import fmplex
from fmplex_broker.errors import InvalidInput, PackageRejected, TextTooLong
from fmplex_broker.packages.package import read_package
from fmplex_broker.packages.sentences import read_sentence_model
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.heads import Classification, Embedding, InputSpec, Similarity
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that the answers are compared with

TEXTS = ["the cat sat on the mat", "anna in paris", "dog", "the house. the house, the house!"]
LONG = "the cat sat on the mat in the house " * 4


def modules(base: Path, *behind: Any, pooling: str = "mean", length: int | None = None) -> list[Any]:
    first = Transformer(str(base), max_seq_length=length)
    return [first, Pooling(tiny.HIDDEN, pooling), *behind]


def dense(into: int, width: int, activation: torch.nn.Module, seed: int = 0, bias: bool = True) -> Dense:
    torch.manual_seed(seed)
    return Dense(into, width, bias=bias, activation_function=activation)


@torch.no_grad()
def shake(model: torch.nn.Module, only: str = "lora") -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if only in name:
            parameter.copy_(torch.randn(parameter.shape) * 0.2)


LORA = LoraConfig(r=4, target_modules=["query", "value"])
IDENTITY, TANH, GELU = torch.nn.Identity(), torch.nn.Tanh(), torch.nn.GELU()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model("bert", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def engine(base: Path) -> PackedEngine:
    return opened(base)


def opened(folder: Path, **backbone: Any) -> PackedEngine:
    spec = BackboneSpec(name=tiny.NAME, model=str(folder), **backbone)
    return open_engine(spec, WorkerSpec(device="cpu"))


def saved(model: SentenceTransformer, folder: Path) -> Path:
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def served(engine: PackedEngine, folder: Path) -> str:
    package = read_package(folder)
    engine.load(engine.fit(package))
    return package.digest


def vectors(engine: PackedEngine, digest: str, texts: list[str]) -> Any:
    return np.stack([made["embedding"].numpy() for made in tiny.run(engine, *((digest, text) for text in texts))])


def close(ours: Any, theirs: Any) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


# --- adapters ---------------------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[str, list[Any]]] = {
    "mean": ("mean", []),
    "cls, length 1": ("cls", [Normalize()]),
    "last token": ("lasttoken", []),
    "a dense layer": ("mean", [dense(tiny.HIDDEN, 12, TANH)]),
    "a dense layer, length 1": ("cls", [dense(tiny.HIDDEN, 48, GELU), Normalize()]),
    "two dense layers": (
        "mean",
        [dense(tiny.HIDDEN, 40, IDENTITY, bias=False), dense(40, 16, IDENTITY, 1), Normalize()],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapter_gives_the_vectors_of_sentence_transformers(
    base: Path, engine: PackedEngine, tmp_path: Path, shape: str
) -> None:
    pooling, behind = SHAPES[shape]
    model = SentenceTransformer(modules=modules(base, *behind, pooling=pooling), device="cpu")
    model.add_adapter(LORA)
    shake(model)
    built = fmplex.from_peft(saved(model, tmp_path / "st"), name="v", backbone=tiny.NAME, out=tmp_path / "p")
    close(vectors(engine, served(engine, built.out), TEXTS), model.encode(TEXTS))


def test_the_default_prompt_and_the_length_are_taken(base: Path, engine: PackedEngine, tmp_path: Path) -> None:
    prompts = {"query": "the dog: ", "document": "on "}
    model = SentenceTransformer(
        modules=modules(base, length=12), prompts=prompts, default_prompt_name="query", device="cpu"
    )
    model.add_adapter(LORA)
    shake(model)
    folder = saved(model, tmp_path / "st")
    texts = [*TEXTS, LONG]
    for prompt in (None, "query", "document"):
        built = fmplex.from_peft(folder, name="v", backbone=tiny.NAME, prompt=prompt, out=tmp_path / "p")
        close(vectors(engine, served(engine, built.out), texts), model.encode(texts, prompt_name=prompt))
    said = fmplex.from_peft(folder, name="v", backbone=tiny.NAME, out=tmp_path / "p", input={"truncate": False}).spec
    assert (said.input.template, said.input.max_tokens, said.input.truncate) == ("the dog: {text}", 12, False)
    with pytest.raises(InvalidInput, match="no prompt 'quary'; it has document, query") as caught:
        fmplex.from_peft(folder, name="v", backbone=tiny.NAME, prompt="quary", out=tmp_path / "q")
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("prefix", ["0.model.", "0.auto_model."])
def test_an_adapter_around_a_whole_model_takes_what_lies_beside_its_base(
    base: Path, engine: PackedEngine, tmp_path: Path, prefix: str
) -> None:
    """As `get_peft_model(SentenceTransformer(…))` saves it: nothing beside it, and keys that begin with the module's number."""
    model = SentenceTransformer(modules=modules(base, Normalize(), pooling="cls"), device="cpu")
    whole = saved(model, tmp_path / "whole")
    wrapped = get_peft_model(model, LORA)
    shake(wrapped)
    wrapped.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    assert all(key.startswith("base_model.model.0.model.") for key in tensors)
    save_file({key.replace("0.model.", prefix, 1): tensor for key, tensor in tensors.items()}, file)
    with pytest.raises(InvalidInput, match="whole SentenceTransformer; give model=") as caught:
        fmplex.from_peft(tmp_path / "adapter", name="v", backbone=tiny.NAME, out=tmp_path / "p")
    assert caught.value.field == "model"
    built = fmplex.from_peft(tmp_path / "adapter", name="v", backbone=tiny.NAME, model=str(whole), out=tmp_path / "p")
    close(vectors(engine, served(engine, built.out), TEXTS), model.encode(TEXTS))


def test_an_adapter_of_a_module_behind_the_transformer_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(modules=modules(base, dense(tiny.HIDDEN, 8, TANH)), device="cpu")
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "2.linear"]))
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(PackageRejected, match=r"2\.linear.*behind the transformer"):
        fmplex.from_peft(tmp_path / "adapter", name="v", backbone=tiny.NAME, head=Embedding(), out=tmp_path / "p")


def test_a_head_of_ones_own_goes_over_what_is_beside_the_adapter(base: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(modules=modules(base, pooling="cls"), device="cpu")
    model.add_adapter(LORA)
    folder = saved(model, tmp_path / "st")
    built = fmplex.from_peft(folder, name="v", backbone=tiny.NAME, head={"kind": "similarity"}, out=tmp_path / "p")
    assert built.spec.head == Similarity(pooling="cls")
    built = fmplex.from_peft(folder, name="v", backbone=tiny.NAME, head=Embedding(pooling="last"), out=tmp_path / "p")
    assert built.spec.head == Embedding(pooling="last", normalize=False)


# --- backbones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [None, "query"])
@pytest.mark.parametrize("behind", [[], [Normalize()]])
def test_a_backbone_says_how_its_hidden_states_are_pooled(
    base: Path, tmp_path: Path, behind: list[Any], prompt: str | None
) -> None:
    """A folder like BGE's: first token, length 1, a prompt for queries."""
    model = SentenceTransformer(
        modules=modules(base, *behind, pooling="cls", length=20),
        prompts={"query": "the house: "},
        default_prompt_name=prompt,
        device="cpu",
    )
    engine = opened(saved(model, tmp_path / "st"))
    close(vectors(engine, tiny.load(engine, Embedding()), TEXTS), model.encode(TEXTS))
    bare = tiny.load(engine, Embedding(), input=InputSpec(template="{text}", truncate=True))
    close(vectors(engine, bare, [*TEXTS, LONG]), model.encode([*TEXTS, LONG], prompt=""))
    other = tiny.load(engine, Embedding(pooling="mean", normalize=False), input=InputSpec(template="{text}"))
    (states,) = tiny.run(engine, (tiny.load(engine, tiny.FEATURES), TEXTS[0]))
    close(vectors(engine, other, TEXTS[:1])[0], states["features"].numpy().mean(0))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    (score,) = tiny.run(engine, (tiny.load(engine, Similarity()), pair))
    left, right = model.encode(TEXTS[:2], normalize_embeddings=True)
    assert score["score"] == pytest.approx(float(left @ right), abs=1e-5)
    (refused,) = engine.prepare([(bare, fmplex_request(LONG, truncate=False))])
    assert isinstance(refused, TextTooLong)
    assert "20" in refused.message


def fmplex_request(text: str, **params: Any) -> Any:
    from fmplex_broker.wire.messages import Request

    return Request(text, params)


def test_a_classifier_reads_what_embeddings_of_the_backbone_are(base: Path, tmp_path: Path) -> None:
    engine = opened(saved(SentenceTransformer(modules=modules(base, pooling="cls"), device="cpu"), tmp_path / "st"))
    weights = tiny.head_file(tmp_path / "h", 2)
    unsaid, said = (
        tiny.load(engine, Classification(labels=("a", "b"), pooling=pooling), weights=weights)
        for pooling in (None, "cls")
    )
    assert tiny.run(engine, (unsaid, TEXTS[0])) == tiny.run(engine, (said, TEXTS[0]))


def test_dense_layers_of_a_whole_model_come_with_its_package(base: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(modules=modules(base, dense(tiny.HIDDEN, 12, TANH), Normalize()), device="cpu")
    folder = saved(model, tmp_path / "st")
    engine = opened(folder)
    with pytest.raises(PackageRejected, match=r"dense layer \(2_Dense\).*from_sentence_transformers") as caught:
        tiny.load(engine, Embedding())
    assert caught.value.field == "head.pooling"
    built = fmplex.from_sentence_transformers(folder, name="v", backbone=tiny.NAME, out=tmp_path / "p")
    assert built.spec.head == Embedding(pooling="mean", normalize=True, projection=(12,), activation="tanh")
    digest = served(engine, built.out)
    close(vectors(engine, digest, TEXTS), model.encode(TEXTS))
    (cut,) = tiny.run(engine, (digest, TEXTS[0], {"dimensions": 5}))
    close(cut["embedding"].numpy()[None], model.encode(TEXTS[:1], truncate_dim=5, normalize_embeddings=True))
    (refused,) = engine.prepare([(digest, fmplex_request(TEXTS[0], dimensions=13))])
    assert isinstance(refused, InvalidInput)
    assert "from 1 to 12" in refused.message


def test_vectors_of_several_shapes_in_one_pass(base: Path, engine: PackedEngine, tmp_path: Path) -> None:
    """Each head is the only one for its vFM, whoever shares the pass."""
    digests, wanted = [], []
    for n, (pooling, behind) in enumerate(SHAPES.values()):
        model = SentenceTransformer(modules=modules(base, *behind, pooling=pooling), device="cpu")
        folder = saved(model, tmp_path / f"st{n}")
        built = fmplex.from_sentence_transformers(folder, name=f"v{n}", backbone=tiny.NAME, out=tmp_path / f"p{n}")
        digests.append(served(engine, built.out))
        wanted.append(model.encode(TEXTS))
    made = tiny.run(engine, *((digest, text) for text in TEXTS for digest in digests))
    for n, theirs in enumerate(wanted):
        close(np.stack([result["embedding"].numpy() for result in made[n :: len(digests)]]), theirs)


def test_a_version_is_of_what_lies_beside_the_backbone(base: Path, tmp_path: Path) -> None:
    prints = [
        opened(saved(SentenceTransformer(modules=modules(base, pooling=p), device="cpu"), tmp_path / p))._fingerprint
        for p in ("mean", "cls")
    ]
    assert prints[0].differences(prints[1]) == ["config"]


# --- what is refused --------------------------------------------------------------------------------------------------

TYPE = "sentence_transformers.models."


def described(folder: Path, *kinds: str | tuple[str, dict[str, Any]], **files: dict[str, Any]) -> Path:
    """Write the files by hand: modules in a row, each a kind or a kind and its config."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n, module in enumerate(kinds):
        kind, config = module if isinstance(module, tuple) else (module, {})
        path = f"{n}_{kind}" if n else ""
        rows.append({"idx": n, "name": str(n), "path": path, "type": kind if "." in kind else TYPE + kind})
        if path:
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(rows))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


POOLED = ("Pooling", {"pooling_mode": "mean"})
WRONG: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "another pooling": ([("Pooling", {"pooling_mode": "max"})], {}, "pooling max"),
    "as older versions said it": ([("Pooling", {"pooling_mode_weightedmean_tokens": True})], {}, "pooling weightedmean"),
    "two poolings": ([("Pooling", {"pooling_mode": ["cls", "mean"]})], {}, "pooling cls and mean"),
    "no pooling": ([], {}, "no Pooling"),
    "another module": ([POOLED, "LayerNorm"], {}, "LayerNorm"),
    "weights of words": (["WordWeights", POOLED], {}, "WordWeights"),
    "dense after length 1": ([POOLED, "Normalize", ("Dense", {"out_features": 4})], {}, "Dense"),
    "dense on tokens": ([POOLED, ("Dense", {"module_input_name": "token_embeddings"})], {}, "token_embeddings"),
    "another activation": (
        [POOLED, ("Dense", {"out_features": 4, "activation_function": "torch.nn.modules.activation.SiLU"})], {}, "SiLU"),
    "a residual": ([POOLED, ("Dense", {"out_features": 4, "use_residual": True})], {}, "use_residual"),
    "code of its own": ([POOLED, "mine.Thing"], {}, "mine.Thing"),
    "a sparse encoder": ([POOLED], {"config_sentence_transformers": {"model_type": "SparseEncoder"}}, "SparseEncoder"),
    "lower case": ([POOLED], {"sentence_bert_config": {"do_lower_case": True}}, "do_lower_case"),
    "another task": ([POOLED], {"sentence_bert_config": {"transformer_task": "fill-mask"}}, "transformer_task"),
    "broken": ([POOLED], {"modules": {"what": 1}}, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_served_is_refused_by_name(base: Path, tmp_path: Path, what: str) -> None:
    kinds, files, says = WRONG[what]
    folder = described(tmp_path / "st", "Transformer", *kinds, **files)
    with pytest.raises(PackageRejected, match=says):
        fmplex.from_sentence_transformers(folder, name="v", backbone=tiny.NAME, out=tmp_path / "p")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None  # that of `base` makes lower case by itself
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    engine = opened(folder)  # a classifier could live here, and whoever says its pooling
    with pytest.raises(PackageRejected, match=says):
        tiny.load(engine, Embedding())
    assert tiny.load(engine, Embedding(pooling="mean"))


def test_a_cross_encoder_describes_no_embedding(tmp_path: Path) -> None:
    folder = described(tmp_path, "Transformer", config_sentence_transformers={"model_type": "CrossEncoder"})
    assert read_sentence_model(lambda name: (folder / name).read_bytes() if (folder / name).is_file() else None) is None


def test_dense_weights_as_a_pickle_are_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = described(tmp_path / "st", "Transformer", POOLED, ("Dense", {"in_features": 32, "out_features": 4}))
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(PackageRejected, match="safe_serialization=True"):
        fmplex.from_sentence_transformers(folder, name="v", backbone=tiny.NAME, out=tmp_path / "p")


def test_a_prompt_that_is_not_pooled_is_refused(tmp_path: Path) -> None:
    settings = {"prompts": {"q": "find: "}, "default_prompt_name": "q"}
    folder = described(
        tmp_path / "st", "Transformer", ("Pooling", {"include_prompt": False}), config_sentence_transformers=settings
    )
    with pytest.raises(PackageRejected, match="include_prompt"):
        fmplex.from_sentence_transformers(folder, name="v", backbone=tiny.NAME, out=tmp_path / "p")


def test_a_length_that_the_backbone_has_not_is_refused(engine: PackedEngine) -> None:
    with pytest.raises(PackageRejected, match=r"100, this backbone takes 66: raise backbone\.max_tokens") as caught:
        tiny.load(engine, Embedding(), input=InputSpec(max_tokens=100))
    assert caught.value.field == "input.max_tokens"
