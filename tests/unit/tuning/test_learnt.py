"""What is learnt: its files, where it begins, and that it is served as it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load, load_file
from torch.nn import functional

from fmplex_broker.errors import InvalidInput, PackageRejected
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from fmplex_broker.specs.fitting import Ia3Spec, LoraSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.tuning.fresh import fresh_ia3, fresh_lora
from fmplex_worker.tuning.learnt import DropoutKey, Learnt, continued
from fmplex_worker.tuning.units import MicroBatch, check_units
from fmplex_worker.tuning.walk import Walk
from tests.support import tiny, tiny_lm, training

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]
LENGTHS = (6, 11, 4)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return Walk(training.load(tiny.save_model("bert", tmp_path_factory.mktemp("bert"))))


@pytest.fixture(
    scope="module", params=["llama", *(pytest.param(name, marks=pytest.mark.long) for name in ("granite", "gemma2"))]
)
def lm_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that generates; the others scale their logits, or cap them."""
    return tiny_lm.save_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def lm(lm_folder: Path) -> Walk:
    return Walk(training.load(lm_folder))


def hidden_of(walk: Walk, learnt: Learnt | None) -> torch.Tensor:
    found: list[torch.Tensor] = []
    training.run(check_units(walk, learnt, training.texts(*LENGTHS), found.append))
    return found[0]


def test_a_new_adapter_changes_nothing_and_learns(bert: Walk) -> None:
    plain = hidden_of(bert, None)
    for learnt in (fresh_lora(bert.backbone, LoraSpec(), 0), fresh_ia3(bert.backbone, Ia3Spec())):
        assert tiny.relative(hidden_of(bert, learnt), plain) < 1e-6
        loss = training.loss_of(sum(LENGTHS), bert.backbone.hidden)
        batch = MicroBatch(bert, learnt, training.texts(*LENGTHS), loss, keep=0, key=None)
        training.run(batch.units())
        gradients = training.gradients(learnt)
        ups = [g for name, g in gradients.items() if "lora_A" not in name]  # B is zero, so A learns nothing yet
        assert all(g is not None and g.any() for g in ups)


def test_a_seed_decides_where_a_lora_begins(bert: Walk) -> None:
    """The same in every process: the first number is known. As PEFT begins: within 1/√inputs."""
    files = [fresh_lora(bert.backbone, LoraSpec(r=2), seed).files("m") for seed in (5, 5, 6)]
    assert files[0] == files[1] != files[2]
    tensors = load(files[0][ADAPTER_WEIGHTS])
    a = tensors["base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"]
    assert a.shape == (2, tiny.HIDDEN)
    assert a.abs().max() <= tiny.HIDDEN**-0.5
    assert float(a[0, 0]) == pytest.approx(0.1070331, abs=1e-6)
    assert not any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert json.loads(files[0][ADAPTER_CONFIG])["base_model_name_or_path"] == "m"


@pytest.mark.parametrize("make", [training.lora, training.ia3], ids=["lora", "ia3"])
def test_what_was_trained_is_served(make: Callable[[Backbone], Learnt], tmp_path: Path) -> None:
    folder = tiny.save_model("bert", tmp_path / "bert")
    engine = tiny_lm.open_tiny(folder)
    walk = Walk(engine._backbone)
    learnt = make(engine._backbone)
    digest = tiny.load(engine, tiny.FEATURES, adapter=training.save(learnt, tmp_path / "adapter"))
    served = tiny.features(engine, *((digest, text) for text in tiny.ids(*LENGTHS)))
    assert tiny.relative(hidden_of(walk, learnt), torch.cat(served)) < 1e-6


def test_files_are_those_of_the_values_that_are_given(bert: Walk) -> None:
    learnt = training.lora(bert.backbone)
    before = {name: parameter.detach().clone() for name, parameter in learnt.parameters.items()}
    files = learnt.files()
    training.noisy(learnt)
    assert learnt.files() != files
    assert learnt.files(values=before) == files


def test_going_on_from_files_goes_on_from_there(bert: Walk, tmp_path: Path) -> None:
    """Those of PEFT too, with ranks and scales of their own; what is not learnt stays in them."""
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["query", "value", "pooler.dense"], use_rslora=True, rank_pattern={"value": 2},
        alpha_pattern={"layer.0.attention.self.query": 3},
    )  # fmt: skip
    folder = tiny.save_model("bert", tmp_path / "bert")
    model = peft.get_peft_model(type(bert.backbone.model).from_pretrained(folder), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name and "pooler" not in name:
                weight.normal_(std=0.2)
    model.save_pretrained(str(tmp_path / "adapter"))
    files = {name: (tmp_path / "adapter" / Path(name).name).read_bytes() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    engine = tiny_lm.open_tiny(folder)
    learnt = continued(engine._backbone, files[ADAPTER_CONFIG], files[ADAPTER_WEIGHTS])
    served = tiny.features(
        engine, *((tiny.load(engine, tiny.FEATURES, adapter=tmp_path / "adapter"), text) for text in tiny.ids(*LENGTHS))
    )
    assert tiny.relative(hidden_of(Walk(engine._backbone), learnt), torch.cat(served)) < 1e-6
    again = learnt.files()
    assert json.loads(again[ADAPTER_CONFIG]) == json.loads(files[ADAPTER_CONFIG])
    ours, theirs = load(again[ADAPTER_WEIGHTS]), load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any("pooler" in name for name in learnt.parameters)
    assert any("pooler" in name for name in ours)


def test_adapters_that_cannot_be_trained_are_refused_by_name(bert: Walk, tmp_path: Path) -> None:
    prompt = tiny.save_prompt(tmp_path / "prompt", 3)
    table = {
        "base_model.model.embeddings.word_embeddings.lora_embedding_A": torch.zeros(4, len(tiny.VOCABULARY)),
        "base_model.model.embeddings.word_embeddings.lora_embedding_B": torch.zeros(tiny.HIDDEN, 4),
    }
    tokens = tiny.save_adapter(tmp_path / "tokens", table)
    for folder, says in ((prompt, "a soft prompt"), (tokens, "an update of the token embeddings")):
        parts = [(folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")]
        with pytest.raises(InvalidInput, match=f"{says} cannot be trained here") as caught:
            continued(bert.backbone, *parts)
        assert caught.value.field == "adapter"
    other = tiny.save_adapter(tmp_path / "other", tiny.lora("encoder.layer.0.attention.self.query", inputs=48))
    with pytest.raises(PackageRejected, match="made for another backbone"):
        continued(
            bert.backbone,
            *((other / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")),
        )


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (None, 12),
        (("query",), 2),
        (("attention.output.dense", "encoder.layer.1.intermediate.dense"), 3),
        (("output.dense",), 4),
    ],
)
def test_targets(bert: Walk, targets: tuple[str, ...] | None, found: int) -> None:
    assert len(fresh_lora(bert.backbone, LoraSpec(targets=targets), 0).parameters) == 2 * found
    assert len(fresh_ia3(bert.backbone, Ia3Spec(targets=targets)).parameters) == found


def test_unknown_targets_are_refused_with_those_there_are(bert: Walk, lm: Walk) -> None:
    known = "there are ['dense', 'key', 'query', 'value']"
    for make, field in (
        (lambda: fresh_lora(bert.backbone, LoraSpec(targets=("q_proj",)), 0), "lora.targets"),
        (lambda: fresh_ia3(bert.backbone, Ia3Spec(targets=("q_proj",))), "ia3.targets"),
        (lambda: fresh_ia3(bert.backbone, Ia3Spec(feedforward=("q_proj",))), "ia3.feedforward"),
        (lambda: fresh_ia3(bert.backbone, Ia3Spec(targets=("dense",), feedforward=("key",))), "ia3.feedforward"),
    ):
        with pytest.raises(InvalidInput, match="is called") as caught:
            make()
        assert caught.value.field == field
        assert "q_proj" not in caught.value.message or known in caught.value.message
    with pytest.raises(InvalidInput, match="lm_head"):  # of a head on hidden states nothing reads it
        fresh_lora(lm.backbone, LoraSpec(targets=("lm_head",)), 0)


def test_dropout_is_the_same_for_the_same_key_alone(bert: Walk) -> None:
    """It leaves out its share, keeps the mean, and only while training."""
    learnt = training.lora(bert.backbone, dropout=0.25)
    key = DropoutKey(1, 2, 3)
    x = torch.ones(100, 50)
    drop = learnt.adapter(key).dropout
    assert drop is not None
    assert torch.equal(drop(4, x), drop(4, x))
    others = [(learnt.adapter(key).dropout, 5)]
    others += [(learnt.adapter(key._replace(**{part: 9})).dropout, 4) for part in key._fields]
    for other, slot in others:
        assert other is not None
        assert not torch.equal(other(slot, x), drop(4, x))
    assert float((drop(4, x) == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(drop(4, x).mean()) == pytest.approx(1, abs=0.05)
    assert learnt.adapter(None).dropout is None


class TokenLoss:
    """Cross-entropy of the next token, of every text; the logits from whatever computes them."""

    def __init__(self, logits: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.logits = logits

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        texts = training.texts(*LENGTHS)
        losses = []
        for text, part in zip(texts, torch.split(hidden, LENGTHS), strict=True):
            labels = torch.from_numpy(text.ids[1:])
            losses.append(functional.cross_entropy(self.logits(part[:-1]), labels, reduction="sum"))
        return torch.stack(losses).sum() / (sum(LENGTHS) - len(LENGTHS))


@pytest.mark.parametrize("kind", ["lora", "ia3", "inputs"])
@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "down_proj", "lm_head"), ("v_proj",)], ids="+".join)
def test_language_model_heads_learn(
    targets: tuple[str, ...], kind: str, lm: Walk, lm_folder: Path, tmp_path: Path
) -> None:
    """Alone, with layers, and left as it is: as one backward gives it to the bit, and as PEFT does."""
    if kind == "lora":
        learnt = fresh_lora(lm.backbone, LoraSpec(r=3, targets=targets), 0, generates=True)
    else:
        inputs = targets[-1:] if kind == "inputs" else ()
        learnt = fresh_ia3(lm.backbone, Ia3Spec(targets=targets, feedforward=inputs), generates=True)
    training.noisy(learnt)
    loss = TokenLoss(lambda hidden: learnt.logits(hidden, None))
    training.monolithic(lm.backbone, learnt, training.texts(*LENGTHS), loss, None)
    want = training.gradients(learnt)
    units = training.run(
        MicroBatch(lm, learnt, training.texts(*LENGTHS), loss, keep=0, key=None).units(training.Steady(1))
    )
    ours = training.gradients(learnt)
    training.assert_same(ours, want)
    assert any(unit.kind == "backward" for unit in units) == (targets != ("lm_head",))
    model = tiny_lm.reference(lm_folder)
    model = peft.PeftModel.from_pretrained(model, training.save(learnt, tmp_path / "adapter"), is_trainable=True).eval()
    logits = [model(input_ids=torch.from_numpy(text.ids)[None]).logits[0] for text in training.texts(*LENGTHS)]
    TokenLoss(lambda rows: rows)(torch.cat(logits)).backward()
    theirs: dict[str, Any] = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        got = ours[name]
        assert got is not None
        assert tiny.relative(got, gradient) < 1e-4, name
