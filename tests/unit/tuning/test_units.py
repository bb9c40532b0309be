"""Training in units gives what one backward gives, to the bit, and what PEFT gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from fmplex_broker.errors import InvalidInput
from fmplex_worker.backbones.families import FAMILIES
from fmplex_worker.tuning.learnt import DropoutKey, Learnt
from fmplex_worker.tuning.units import MicroBatch, check_units
from fmplex_worker.tuning.walk import Walk
from tests.support import families, tiny, training

LENGTHS = (5, 9, 20, 9)
# Their own attention in transformers, which has no other; DeBERTa scales it in float32, whatever it computes in.
EAGER = ("deberta-v2", "mpnet", "t5", "gemma2")
Walks = Callable[..., Walk]
Folders = Callable[[str], Path]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Family → folder of its tiny model."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tiny.save_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture(scope="session")
def walk_of(folder_of: Folders) -> Walks:
    """Family and dtype → a walk of its tiny model."""
    made: dict[tuple[str, torch.dtype], Walk] = {}

    def walk(family: str, dtype: torch.dtype = torch.float32) -> Walk:
        if (family, dtype) not in made:
            made[family, dtype] = Walk(training.load(folder_of(family), dtype))
        return made[family, dtype]

    return walk


kinds = pytest.mark.parametrize("kind", [training.lora, training.ia3], ids=["lora", "ia3"])


@families.families(FAMILIES)
@kinds
def test_gradients_of_units_are_those_of_one_backward(family: str, kind: Callable[..., Learnt], walk_of: Walks) -> None:
    """Whatever is kept and whatever is computed again, with dropout and without."""
    for dtype in (torch.float32, torch.float64):
        walk = walk_of(family, dtype)
        backbone, texts = walk.backbone, training.texts(*LENGTHS)
        learnt = kind(backbone) if kind is training.ia3 else kind(backbone, dropout=0.2)
        loss = training.loss_of(sum(LENGTHS), backbone.hidden, dtype=dtype)
        for key in (None, DropoutKey(seed=1, step=2)):
            value = training.monolithic(backbone, learnt, texts, loss, key)
            want = training.gradients(learnt)
            for keep in range(walk.layers + 1):
                batch = MicroBatch(walk, learnt, texts, loss, keep=keep, key=key)
                training.run(batch.units(training.Steady(1)))
                assert batch.value == value
                training.assert_same(training.gradients(learnt), want)


@families.families(FAMILIES)
@kinds
def test_gradients_are_those_of_peft(
    family: str, kind: Callable[..., Learnt], walk_of: Walks, folder_of: Folders, tmp_path: Path
) -> None:
    """In float64, text by text; the files that we write load there as they are."""
    walk, texts = walk_of(family, torch.float64), training.texts(*LENGTHS)
    learnt = kind(walk.backbone)
    loss = training.loss_of(sum(LENGTHS), walk.backbone.hidden, dtype=torch.float64)
    training.run(MicroBatch(walk, learnt, texts, loss, keep=1, key=None).units())
    ours = training.gradients(learnt)
    model = _peft(folder_of(family), training.save(learnt, tmp_path / "adapter"))
    hidden = [model(input_ids=torch.from_numpy(text.ids)[None]).last_hidden_state[0] for text in texts]
    loss(torch.cat(hidden)).backward()
    theirs = {name.replace(".default", ""): p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        got = ours[name]
        assert got is not None
        assert tiny.relative(got, gradient) <= (1e-6 if family == "deberta-v2" else 1e-9), name


def _peft(folder: Path, adapter: Path) -> Any:
    """The model and an adapter as PEFT trains it, in float64."""
    family = FAMILIES[json.loads((folder / "config.json").read_text())["model_type"]]
    attention = "eager" if family.model_type in EAGER else "sdpa"  # eager attention often goes through float32
    model = family.auto.from_pretrained(folder, attn_implementation=attention, **family.options).double()
    return (
        peft.PeftModel.from_pretrained(model, adapter, is_trainable=True, autocast_adapter_dtype=False).double().eval()
    )


def test_hidden_states_without_gradients_are_those_of_a_pass(walk_of: Walks, folder_of: Folders) -> None:
    """In the order of the texts, whatever their order in the row."""
    walk, texts = walk_of("bert"), training.texts(*LENGTHS)
    for learnt in (training.lora(walk.backbone, dropout=0.5), None):
        found: list[torch.Tensor] = []
        units = training.run(check_units(walk, learnt, texts, found.append, training.Steady(1)))
        assert [(unit.kind, unit.tokens, unit.cost) for unit in units] == [("check", 43, 43)] * 2
        (hidden,) = found
        assert not hidden.requires_grad
        for text, part in zip(texts, torch.split(hidden, LENGTHS), strict=True):
            alone: list[torch.Tensor] = []
            training.run(check_units(walk, learnt, [text], alone.append))
            assert tiny.relative(part, alone[0]) < 1e-5
            if learnt is None:
                reference = tiny.reference(folder_of("bert"))
                assert tiny.relative(part, tiny.reference_features(reference, text.ids.tolist())) < 1e-5


def test_units_say_what_they_cost(walk_of: Walks) -> None:
    """A backward that computes again costs that too; the loss what it is said to."""
    walk = walk_of("albert")
    assert walk.layers == 4  # of two groups, run twice each
    loss = training.loss_of(sum(LENGTHS), walk.backbone.hidden)
    batch = MicroBatch(
        walk, training.lora(walk.backbone), training.texts(*LENGTHS), loss, keep=1, key=None, loss_layers=2.0
    )
    units = training.run(batch.units(training.Steady(3)))
    assert [unit.kind for unit in units] == ["forward", "forward", "loss", "backward", "backward"]
    assert {unit.tokens for unit in units} == {43}
    costs = [unit.cost / 43 for unit in units]
    assert costs[:3] == [3, 1, 2]
    assert costs[3] - 2 == pytest.approx(3 * (costs[4] - 1))  # of three layers two, of one layer one again
    assert costs[4] > 2


def test_layers_below_all_that_is_learnt_have_no_backward(walk_of: Walks) -> None:
    walk, texts = walk_of("bert"), training.texts(*LENGTHS)
    learnt = training.lora(walk.backbone, targets=["encoder.layer.1.output.dense"])
    loss = training.loss_of(sum(LENGTHS), walk.backbone.hidden)
    training.monolithic(walk.backbone, learnt, texts, loss, None)
    want = training.gradients(learnt)
    units = training.run(MicroBatch(walk, learnt, texts, loss, keep=0, key=None).units(training.Steady(1)))
    assert [unit.kind for unit in units] == ["forward", "forward", "loss", "backward"]
    training.assert_same(training.gradients(learnt), want)


def test_gradients_of_micro_batches_are_added(walk_of: Walks) -> None:
    """So a batch may be cut into as many as fit; whatever the loss is made of learns with them."""
    walk = walk_of("llama")
    backbone, learnt = walk.backbone, training.lora(walk.backbone)
    head = torch.nn.Linear(backbone.hidden, 1)
    parts = [training.texts(5, 9), training.texts(20, seed=1), training.texts(7, 3, seed=2)]
    for texts in parts:
        training.monolithic(backbone, learnt, texts, lambda hidden: head(hidden).tanh().sum() / 44, None)
    want, of_head = training.gradients(learnt), head.weight.grad
    head.zero_grad()
    for texts in parts:
        batch = MicroBatch(walk, learnt, texts, lambda hidden: head(hidden).tanh().sum() / 44, keep=1, key=None)
        training.run(batch.units())
    training.assert_same(training.gradients(learnt), want)
    assert torch.equal(head.weight.grad, of_head)  # type: ignore[arg-type]


def test_a_micro_batch_that_is_given_up_has_added_nothing(walk_of: Walks) -> None:
    walk = walk_of("bert")
    learnt = training.lora(walk.backbone)
    loss = training.loss_of(sum(LENGTHS), walk.backbone.hidden)
    total = len(
        training.run(
            MicroBatch(walk, learnt, training.texts(*LENGTHS), loss, keep=1, key=None).units(training.Steady(1))
        )
    )
    training.gradients(learnt)
    units = MicroBatch(walk, learnt, training.texts(*LENGTHS), loss, keep=1, key=None).units(training.Steady(1))
    for _ in range(total - 1):
        next(units).run()
    assert {gradient is None for gradient in training.gradients(learnt).values()} == {True}


def test_in_half_precision_too(folder_of: Folders) -> None:
    """What is learnt stays in float32, where small steps are not lost."""
    walk, texts = Walk(training.load(folder_of("llama"), torch.bfloat16)), training.texts(*LENGTHS)
    learnt = training.lora(walk.backbone, dropout=0.2)
    loss = training.loss_of(sum(LENGTHS), walk.backbone.hidden, dtype=torch.bfloat16)
    training.monolithic(walk.backbone, learnt, texts, loss, DropoutKey(1, 2))
    want = training.gradients(learnt)
    assert {parameter.dtype for parameter in learnt.parameters.values()} == {torch.float32}
    for keep in (0, walk.layers):
        training.run(MicroBatch(walk, learnt, texts, loss, keep=keep, key=DropoutKey(1, 2)).units(training.Steady(1)))
        training.assert_same(training.gradients(learnt), want)


def test_what_is_more_than_its_layers_is_refused_by_name(tmp_path: Path) -> None:
    """The convolution of DeBERTa-v2 xlarge lies between two layers."""
    folder = tiny.save_model("deberta-v2", tmp_path, conv_kernel_size=3, conv_act="gelu")
    with pytest.raises(InvalidInput, match=r"a deberta-v2 like .* cannot be trained here") as caught:
        Walk(training.load(folder))
    assert caught.value.field == "model"
