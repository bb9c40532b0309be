"""Variants of families that differ in more than numbers, each against transformers and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, T5ForConditionalGeneration

from fmplex_broker.errors import InvalidInput, PackageRejected
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from tests.support import tiny

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "EmbeddingGemma: every token sees every other": ("gemma3_text", {"use_bidirectional_attention": True}),
    "DeBERTa-v2 xlarge: a convolution": ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    "DeBERTa-v2: linears of positions": ("deberta-v2", {"share_att_key": False, "position_buckets": -1}),
    "DeBERTa-v2: content to position only": ("deberta-v2", {"pos_att_type": ["c2p"], "type_vocab_size": 2}),
    "DeBERTa-v2: plain": ("deberta-v2", {"relative_attention": False, "pos_att_type": [], "position_biased_input": True}),
    "T5 of 2020": ("t5", {"feed_forward_proj": "relu"}),
    "ALBERT: one group of several layers": ("albert", {"num_hidden_groups": 1, "inner_group_num": 2}),
    "Phi-4-mini: part of a head rotates": ("phi3", {"partial_rotary_factor": 0.5}),
}  # fmt: skip


def engine_on(folder: Path) -> PackedEngine:
    return open_engine(BackboneSpec(name=tiny.NAME, model=str(folder)), WorkerSpec(device="cpu"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_keep_the_contract(variant: str, tmp_path: Path) -> None:
    """Texts with adapters and without, two of one length side by side, equal PEFT's of each alone."""
    family, changes = VARIANTS[variant]
    folder = tiny.save_model(family, tmp_path / "model", **changes)
    engine, model = engine_on(folder), tiny.reference(folder)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    wrapped.save_pretrained(tmp_path / "adapter")
    adapted = tiny.load(engine, tiny.FEATURES, adapter=tmp_path / "adapter")
    bare = tiny.load(engine, tiny.FEATURES)
    texts = tiny.ids(40, 7, 7, 40, 7, 1)
    owners = [adapted, adapted, bare, bare, adapted, bare]
    for owner, text, ours in zip(owners, texts, tiny.features(engine, *zip(owners, texts, strict=True)), strict=True):
        if owner == adapted:
            assert tiny.relative(ours, tiny.reference_features(wrapped, text)) < 1e-4
        else:
            with wrapped.disable_adapter():
                assert tiny.relative(ours, tiny.reference_features(wrapped, text)) < 1e-5


def test_a_decoder_made_an_encoder_may_pool_its_first_token(tmp_path: Path) -> None:
    folder = tiny.save_model("gemma3_text", tmp_path, use_bidirectional_attention=True)
    backbone = load_backbone(BackboneSpec(name=tiny.NAME, model=str(folder)), "cpu")
    assert not backbone.family.causal


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers.:UserWarning")
@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_lora_on_embeddings_that_scale_what_they_give(family: str, tmp_path: Path) -> None:
    folder = tiny.save_model(family, tmp_path / "model")
    config = peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(tiny.reference(folder), config)
    wrapped.save_pretrained(tmp_path / "adapter")
    engine = engine_on(folder)
    digest, (text,) = tiny.load(engine, tiny.FEATURES, adapter=tmp_path / "adapter"), tiny.ids(20)
    assert tiny.relative(tiny.features(engine, (digest, text))[0], tiny.reference_features(wrapped, text)) < 1e-4


@pytest.mark.parametrize("family", ["phi3", "olmo2", "granite", "smollm3", "gemma2", "gemma3_text"])
def test_adapters_of_the_language_model_fit(family: str, tmp_path: Path) -> None:
    """Trained with the task class, keys begin with `model.`."""
    folder = tiny.save_model(family, tmp_path / "model")
    whole = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(whole, config)
    wrapped.save_pretrained(tmp_path / "adapter")
    engine = engine_on(folder)
    digest, (text,) = tiny.load(engine, tiny.FEATURES, adapter=tmp_path / "adapter"), tiny.ids(20)
    with torch.no_grad():
        states = wrapped(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
    assert tiny.relative(tiny.features(engine, (digest, text))[0], states) < 1e-4


def test_the_encoder_of_a_whole_t5(tmp_path: Path) -> None:
    """What the hub holds is mostly encoder and decoder; adapters of its encoder fit, those of the decoder are told."""
    model = tiny.reference(tiny.save_model("t5", tmp_path / "encoder"))
    whole = T5ForConditionalGeneration(model.config)
    whole.encoder.load_state_dict(model.encoder.state_dict())
    whole.shared.load_state_dict(model.shared.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    tiny.save_tokenizer(tmp_path / "whole")
    engine = engine_on(tmp_path / "whole")
    (text,) = tiny.ids(9)
    ours = tiny.features(engine, (tiny.load(engine, tiny.FEATURES), text))[0]
    assert tiny.relative(ours, tiny.reference_features(model, text)) < 1e-5
    adapter = tiny.save_adapter(tmp_path / "a", tiny.lora("decoder.block.0.layer.0.SelfAttention.q"))
    with pytest.raises(PackageRejected, match=r"decoder\.block\.0.*no such linear layer"):
        tiny.load(engine, tiny.FEATURES, adapter=adapter)


LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 5.0, 6.0, 7.0],
        "original_max_position_embeddings": 40,
    },
    "original_max_position_embeddings": 40,
}  # fmt: skip


def test_longrope_within_the_positions_it_was_trained_with(tmp_path: Path) -> None:
    """Beyond, its frequencies depend on the longest text of the pass (Phi-3-mini-128k, Phi-3.5, Phi-4-mini)."""
    folder = tiny.save_model("phi3", tmp_path, **LONGROPE)
    engine, model = engine_on(folder), tiny.reference(folder)
    assert engine.info.max_tokens == 40
    bare, texts = tiny.load(engine, tiny.FEATURES), tiny.ids(40, 7)
    for text, ours in zip(texts, tiny.features(engine, *((bare, text) for text in texts)), strict=True):
        assert tiny.relative(ours, tiny.reference_features(model, text)) < 1e-5
    with pytest.raises(InvalidInput, match="takes 40 tokens at most") as caught:
        load_backbone(BackboneSpec(name=tiny.NAME, model=str(folder), max_tokens=41), "cpu")
    assert caught.value.field == "backbone.max_tokens"


def test_distances_have_no_end(tmp_path: Path) -> None:
    """T5 takes longer texts than it was trained with, if the operator says so."""
    folder = tiny.save_model("t5", tmp_path)
    spec = BackboneSpec(name=tiny.NAME, model=str(folder))
    assert load_backbone(spec, "cpu").max_tokens == tiny.POSITIONS
    assert load_backbone(spec.model_copy(update={"max_tokens": 600}), "cpu").max_tokens == 600


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ({"model_type": "gemma3"}, "also reads images; save its text model alone"),
        ({"model_type": "deberta"}, "use a deberta-v2"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "only a gemma3_text is"),
    ],
)
def test_refused_with_what_to_do(said: dict[str, Any], answer: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(InvalidInput, match=answer) as caught:
        load_backbone(BackboneSpec(name=tiny.NAME, model=str(tmp_path)), "cpu")
    assert caught.value.field == "backbone.model"


def test_float16_of_t5(tmp_path: Path) -> None:
    """transformers keeps a part of it in float32, since it overflows; so its adapters would have two types."""
    folder = tiny.save_model("t5", tmp_path)
    with pytest.raises(InvalidInput, match="bfloat16 or float32") as caught:
        load_backbone(BackboneSpec(name=tiny.NAME, model=str(folder), dtype="float16"), "cpu")
    assert caught.value.field == "backbone.dtype"


@pytest.mark.parametrize("family", ["t5", "deberta-v2", "gemma2", "granite"])
def test_half_precision(family: str, tmp_path: Path) -> None:
    folder = tiny.save_model(family, tmp_path)
    spec = BackboneSpec(name=tiny.NAME, model=str(folder), dtype="bfloat16")
    engine, (text,) = open_engine(spec, WorkerSpec(device="cpu")), tiny.ids(9)
    wrapped = peft.get_peft_model(
        tiny.reference(folder), peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    wrapped.save_pretrained(tmp_path / "adapter")
    ours = tiny.features(engine, (tiny.load(engine, tiny.FEATURES, adapter=tmp_path / "adapter"), text))[0]
    assert tiny.relative(ours, tiny.reference_features(wrapped, text)) < 0.2
