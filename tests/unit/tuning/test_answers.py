"""What is learnt of a conversation: exactly the last message and its end, after the prompt that a call would have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fmplex_broker.errors import InvalidInput, TextTooLong
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_broker.specs.heads import Generation
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.tuning.decoder.answer_objective import AnswerObjective
from fmplex_worker.tuning.decoder.answers import Answers
from fmplex_worker.tuning.decoder.examples import TextExample
from fmplex_worker.tuning.learnt import DropoutKey, Learnt
from tests.support import tiny_lm
from tests.unit.tuning import learnable

ENDED = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<eos>\n{% endfor %}"
ENDED += "{% if add_generation_prompt %}<assistant>{% endif %}"
CHAT = {"messages": [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": " coffee "}]}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tiny_lm.save_model("llama", tmp_path_factory.mktemp("llama"))
    return load_backbone(BackboneSpec(name="tiny", model=str(folder)), "cpu")


def _read(backbone: Backbone, path: Path, *lines: Any, truncate: bool = False, **head: Any) -> list[TextExample]:
    assert backbone.lm_head is not None
    learnable.write(path / "data.jsonl", lines)
    return Answers(backbone, backbone.lm_head, Generation(**head)).read(path / "data.jsonl", truncate, 1)


def _parts(backbone: Backbone, example: TextExample) -> tuple[str, str]:
    decode = backbone.tokenizer.whole.decode
    tokens, learn = example
    return decode(tokens[:learn], skip_special_tokens=False), decode(tokens[learn:], skip_special_tokens=False)


def test_the_template_says_where_the_answer_ends(llama: Backbone, tmp_path: Path) -> None:
    (example,) = _read(llama, tmp_path, CHAT, chat_template=ENDED)
    assert _parts(llama, example) == ("<user>tea?<eos>\n<assistant>", "coffee<eos>")


def test_an_end_is_added_where_the_template_has_none(llama: Backbone, tmp_path: Path) -> None:
    (example,) = _read(llama, tmp_path, CHAT)
    assert _parts(llama, example) == ("<user>tea?\n<assistant>", " coffee <eos>")


def test_the_system_message_of_the_vfm_is_put_before(llama: Backbone, tmp_path: Path) -> None:
    (example,) = _read(llama, tmp_path, CHAT, system="be short")
    assert _parts(llama, example)[0] == "<system>be short\n<user>tea?\n<assistant>"


def test_a_plain_text_is_learnt_from_its_second_token(llama: Backbone, tmp_path: Path) -> None:
    (example,) = _read(llama, tmp_path, {"text": "the cat"})
    assert example.learn == 1
    assert "".join(_parts(llama, example)) == "the cat<eos>"


def test_texts_that_are_too_long_are_named_or_cut(llama: Backbone, tmp_path: Path) -> None:
    long = {"text": "x " * 300}
    with pytest.raises(TextTooLong, match=r"at most 200 tokens are taken; shorten line 2 \(\d+\), line 3 \(\d+\)") as e:
        _read(llama, tmp_path, CHAT, long, long)
    assert e.value.field == "data"
    examples = _read(llama, tmp_path, CHAT, long, truncate=True)
    assert [len(example.tokens) for example in examples][1] == 200


def test_what_leaves_nothing_to_learn_is_named(llama: Backbone, tmp_path: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "x " * 300}, CHAT["messages"][1]]}
    with pytest.raises(InvalidInput, match="nothing to learn within 200 tokens: line 2"):
        _read(llama, tmp_path, CHAT, asked, truncate=True)


def test_a_template_that_refuses_names_the_line(llama: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"line 1: .*template") as e:
        _read(llama, tmp_path, CHAT, chat_template="{{ raise_exception('no') }}")
    assert e.value.field == "data"


def test_each_text_of_a_row_has_its_own_answer() -> None:
    """What is learnt of several texts together is what is learnt of each of them, whatever lies before it in the row."""
    examples = [TextExample([5, 6, 7, 8], 2), TextExample([1, 2, 3], 1), TextExample([4, 3, 2, 1, 0], 4)]
    vocabulary = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    learnt = cast(Learnt, SimpleNamespace(logits=lambda states, key: states @ vocabulary))
    objective, key = AnswerObjective(learnt, examples, [], 1, 0), DropoutKey(0, 0)
    hidden = [torch.randn(len(example.tokens) - 1, 6) for example in examples]
    alone = [objective.loss([i], states, key) for i, states in enumerate(hidden)]
    assert torch.allclose(objective.loss([0, 1, 2], torch.cat(hidden), key), sum(alone, torch.tensor(0.0)))
    logits = (hidden[2] @ vocabulary)[-1].log_softmax(-1)
    assert torch.allclose(alone[2], -logits[0]), "of the last one only its last token is learnt"
