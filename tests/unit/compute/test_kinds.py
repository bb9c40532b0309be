"""Every kind of adapter against PEFT, on every family, and all of them with none in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fmplex_broker.errors import TextTooLong
from fmplex_broker.specs import heads as specs
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.families import FAMILIES
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.heads.spans import spans
from tests.support import families as support
from tests.support import tiny

Engines = Callable[[str], PackedEngine]
Folders = Callable[[str], Path]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
families = support.families(FAMILIES)
VIRTUAL = 5


@dataclass
class Trained:
    """An adapter as PEFT runs it and as PEFT saved it."""

    model: Any
    folder: Path
    virtual: int = 0

    def states(self, text: list[int]) -> torch.Tensor:
        """Hidden states of the text's own tokens."""
        return tiny.reference_features(self.model, text)[self.virtual :]


def train(source: Path, config: peft.PeftConfig, folder: Path, virtual: int = 0) -> Trained:
    """PEFT's model with random adapter weights."""
    wrapped = peft.get_peft_model(tiny.reference(source), config).eval()
    torch.manual_seed(virtual + 1)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name or "prompt_encoder" in name:
                weight.normal_(std=0.3)
            elif "ia3_" in name:
                weight.copy_(1 + torch.randn_like(weight) * 0.5)
    wrapped.save_pretrained(str(folder))
    return Trained(wrapped, folder, virtual)


def kinds(family: str, engine: PackedEngine, source: Path, folder: Path) -> dict[str, Trained]:
    """One adapter of every kind."""
    linears = [name for name in engine._backbone.targets if "layer" in name or name.startswith("h.")]
    # The first linear shares its input with others and with the residual; the last is what the paper scales.
    inputs = [linears[0], linears[-1]]
    width, table = engine._backbone.embeddings.embedding_dim, engine._backbone.embeddings_path
    transposed = {"fan_in_fan_out": family == "gpt2"}  # its linears are Conv1D
    prompt: dict[str, Any] = {"task_type": "FEATURE_EXTRACTION", "token_dim": width, "num_attention_heads": 4}
    configs: dict[str, tuple[peft.PeftConfig, int]] = {
        "lora": (peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **transposed), 0),
        "lora2": (peft.LoraConfig(r=2, lora_alpha=8, target_modules=linears[:3], **transposed), 0),
        "tokens": (peft.LoraConfig(r=3, lora_alpha=3, use_rslora=True, target_modules=[table]), 0),
        "both": (peft.LoraConfig(r=3, lora_alpha=3, target_modules=[table, *linears], **transposed), 0),
        "ia3": (peft.IA3Config(target_modules=linears, feedforward_modules=inputs, **transposed), 0),
        "ia3_inputs": (peft.IA3Config(target_modules=linears[-2:], feedforward_modules=linears[-2:], **transposed), 0),
        "ia3_outputs": (peft.IA3Config(target_modules=linears, feedforward_modules="none", **transposed), 0),
        "prompt": (peft.PromptTuningConfig(num_virtual_tokens=VIRTUAL, **prompt), VIRTUAL),
        "p_tuning": (peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=7, **prompt), 3),
    }
    return {kind: train(source, config, folder / kind, n) for kind, (config, n) in configs.items()}


@families
def test_every_kind_in_one_pass(family: str, engine_of: Engines, model_folder: Folders, tmp_path: Path) -> None:
    """Each against PEFT alone, and against itself alone; texts without an adapter see none of it."""
    engine, source = engine_of(family), model_folder(family)
    trained = kinds(family, engine, source, tmp_path)
    bare = tiny.load(engine, tiny.FEATURES)
    plain = tiny.reference(source)
    digests = {kind: tiny.load(engine, tiny.FEATURES, adapter=one.folder) for kind, one in trained.items()}
    texts = tiny.ids(*range(5, 5 + len(trained)), *[8] * len(trained))
    jobs = [*zip([*trained] * 2, texts, strict=True)]
    packed = tiny.features(engine, *((digests[kind], text) for kind, text in jobs), *((bare, t) for t in texts[:2]))
    for (kind, text), ours in zip(jobs, packed, strict=False):
        theirs = trained[kind].states(text)
        assert tiny.relative(ours, theirs) < 1e-5, kind
        assert tiny.relative(ours, tiny.features(engine, (digests[kind], text))[0]) < 1e-5, kind
        assert tiny.relative(ours, tiny.reference_features(plain, text)) > 1e-2, kind  # it matters
    for text, ours in zip(texts, packed[len(jobs) :], strict=False):
        assert tiny.relative(ours, tiny.reference_features(plain, text)) < 1e-5


@families
def test_memory_is_counted(family: str, engine_of: Engines, model_folder: Folders, tmp_path: Path) -> None:
    """`loaded` says the bytes of every tensor that a version holds."""
    engine = engine_of(family)
    for kind, one in kinds(family, engine, model_folder(family), tmp_path).items():
        digest = tiny.load(engine, tiny.FEATURES, adapter=one.folder)
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tiny.tensors_of(engine, digest)}
        assert engine.loaded[digest] == sum(held.values()) > 0, kind


def test_pairs_and_prompts(bert: PackedEngine, model_folder: Folders, tmp_path: Path) -> None:
    """Token types of a pair stay, those of virtual tokens are 0, as PEFT's task classes have it."""
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder("bert"), attn_implementation="eager").eval()
    wrapped = peft.get_peft_model(model, config).eval()
    folder = tiny.save_prompt(tmp_path, VIRTUAL)
    prompt = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    wrapped.prompt_encoder["default"].load_state_dict({"embedding.weight": prompt})
    digest = tiny.load(bert, tiny.FEATURES, adapter=folder)
    (job,) = bert.prepare([(digest, Request({"text": "the cat", "text_pair": "a dog on a mat"}, {}))])
    text = job.texts[0]  # type: ignore[union-attr]
    ids, types = (torch.from_numpy(row)[None] for row in (text.ids, text.types))
    assert types.any()
    with torch.no_grad():
        out = wrapped(input_ids=ids, token_type_ids=types, output_hidden_states=True)
    (result,) = tiny.step(bert, [job])
    ours = torch.from_numpy(result["features"].numpy().copy())
    assert tiny.relative(ours, out.hidden_states[-1][0, VIRTUAL:]) < 1e-5


def test_heads_do_not_read_virtual_tokens(bert: PackedEngine, tmp_path: Path) -> None:
    """Pooling, tagging and features are over the text's own tokens, whatever the pooling."""
    folder = tiny.save_prompt(tmp_path, VIRTUAL)
    tagging = specs.Tagging(labels=("a", "b"))
    weights = tiny.stack_file(tmp_path / "tagging", {"": tagging}, seed=1)
    text = "the cat sat on a mat"
    digests = [
        tiny.load(bert, tiny.FEATURES, adapter=folder),
        tiny.load(bert, tagging, adapter=folder, weights=weights),
    ]
    how: list[specs.Pooling] = ["mean", "cls", "last"]
    for pooling in how:
        digests.append(tiny.load(bert, specs.Embedding(pooling=pooling, normalize=False), adapter=folder))
    first, tagged, *vectors = tiny.run(bert, *((digest, text) for digest in digests))
    states = torch.from_numpy(first["features"].numpy().copy())
    for result, want in zip(vectors, (states.mean(0), states[0], states[-1]), strict=True):
        assert tiny.relative(torch.from_numpy(result["embedding"].numpy().copy()), want) < 1e-5
    offsets = bert._backbone.tokenizer.encode([text], offsets=True)[0].offsets
    assert offsets is not None
    assert len(offsets) == len(states)
    layer = load_file(weights)
    shares, classes = (states @ layer["weight"].t() + layer["bias"]).softmax(1).max(1)
    want_spans = spans(text, offsets.tolist(), classes.tolist(), shares.tolist(), tagging.labels)
    assert want_spans
    for ours, theirs in zip(tagged["spans"], want_spans, strict=True):
        assert ours == {**theirs, "score": pytest.approx(theirs["score"], rel=1e-4)}


def test_prompts_count(bert: PackedEngine, tmp_path: Path) -> None:
    """Virtual tokens are units, and count towards what the backbone takes; a text is cut to what they leave."""
    folder = tiny.save_prompt(tmp_path, VIRTUAL)
    digest, bare = tiny.load(bert, specs.Embedding(), adapter=folder), tiny.load(bert, specs.Embedding())
    most = tiny.POSITIONS
    fits, long, ids = "cat " * (most - VIRTUAL - 2), "cat " * (most - VIRTUAL - 1), {"input_ids": [7] * most}
    (good,) = bert.prepare([(digest, Request(fits, {}))])
    assert (good.units, good.adapter) == (most, 0)  # type: ignore[union-attr]  # it needs no segment
    for value in (long, ids):
        (error,) = bert.prepare([(digest, Request(value, {}))])
        assert isinstance(error, TextTooLong)
        assert f"and {VIRTUAL} of this vFM's prompt" in error.message
    cut: list[Any] = bert.prepare([(d, Request("cat " * 99, {"truncate": True})) for d in (digest, bare, digest)])
    assert [job.texts[0].tokens for job in cut] == [most - VIRTUAL, most, most - VIRTUAL]
    assert all(job.texts[0].ids[-1] == 4 for job in cut)  # [SEP]
    assert all("embedding" in result for result in tiny.step(bert, [good, *cut]))


def test_embeddings_of_a_caller_are_not_updated(bert: PackedEngine, model_folder: Folders, tmp_path: Path) -> None:
    trained = kinds("bert", bert, model_folder("bert"), tmp_path)
    embeds = tiny.embeds(9, tiny.HIDDEN)
    results = []
    for kind in ("tokens", "both", "prompt"):
        digest = tiny.load(bert, tiny.FEATURES, adapter=trained[kind].folder)
        results.append((kind, tiny.run(bert, (digest, {"inputs_embeds": embeds}))[0]["features"]))
    for kind, result in results:
        with torch.no_grad():
            own = torch.from_numpy(embeds.numpy().copy())[None]
            theirs = trained[kind].model(inputs_embeds=own).last_hidden_state[0, trained[kind].virtual :]
        assert tiny.relative(torch.from_numpy(result.numpy().copy()), theirs) < 1e-5
