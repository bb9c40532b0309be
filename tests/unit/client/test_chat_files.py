"""What a training leaves beside an adapter: chat template, ends and sampling become the vFM's; its tokenizer is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

import fmplex
from fmplex_broker.errors import InvalidInput, PackageRejected
from fmplex_broker.specs.heads import Generation
from tests.support.packages import write_adapter

QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
TEMPLATE = "  {% for m in messages %}{{ bos_token }}{{ m.content }}{{ eos_token }}\n{% endfor %}"
HEAD = {"kind": "generation"}


def adapter(folder: Path, **files: Any) -> Path:
    """An adapter, with JSON or text files beside it."""
    factors = {
        f"{QUERY}.lora_{side}.weight": np.ones(shape, np.float32) for side, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    write_adapter(folder, factors, r=2, lora_alpha=4, task_type="CAUSAL_LM")
    for name, content in files.items():
        path, text = name.replace("__", "."), content if isinstance(content, str) else json.dumps(content)
        (folder / path).write_text(text)
    return folder


def tokenizer(**added: int) -> dict[str, Any]:
    extra = [{"content": content, "id": number, "special": True} for content, number in added.items()]
    return {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": extra}


def head(folder: Path, given: Any = HEAD, **more: Any) -> Generation:
    spec = fmplex.from_peft(folder, name="v", backbone="m", head=given, out=folder.parent / "package", **more).spec
    assert isinstance(spec.head, Generation)
    return spec.head


def test_template_ends_and_sampling_are_taken(tmp_path: Path) -> None:
    folder = adapter(
        tmp_path / "a",
        tokenizer_config__json={"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}, "pad_token": None},
        chat_template__jinja=TEMPLATE,
        generation_config__json={
            "eos_token_id": [5, 7],
            "temperature": 0.6,
            "top_p": 0.9,
            "top_k": 20,
            "max_length": 9,
        },
    )
    taken = head(folder)
    assert (taken.stop, taken.stop_token_ids) == (("<|im_end|>",), (5, 7))
    assert taken.sampling == {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    messages = [{"role": "user", "content": "x"}]
    own = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    [theirs], _ = render_jinja_template([messages], chat_template=TEMPLATE, **own)
    backbones = {"bos_token": "?", "eos_token": "?"}
    assert render_jinja_template([messages], chat_template=taken.chat_template, **backbones)[0] == [theirs]


@pytest.mark.parametrize(
    "given", [HEAD | {"stop": [], "temperature": 1.0}, Generation(stop=(), temperature=1.0), Generation(max_tokens=3)]
)
def test_what_the_caller_says_holds(tmp_path: Path, given: Any) -> None:
    files: dict[str, Any] = {
        "tokenizer_config__json": {"eos_token": "E"},
        "generation_config__json": {"temperature": 0.6},
    }
    taken = head(adapter(tmp_path / "a", **files), given)
    said = given if isinstance(given, dict) else given.model_dump(exclude_unset=True)
    assert taken.stop == (() if "stop" in said else ("E",))
    assert taken.temperature == said.get("temperature", 0.6)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config__json": {"chat_template": "T"}},
        {
            "tokenizer_config__json": {
                "chat_template": [{"name": "tool_use", "template": "X"}, {"name": "default", "template": "T"}]
            }
        },
        {"chat_template__json": {"chat_template": "T"}},
        {"chat_template__jinja": "T", "tokenizer_config__json": {"chat_template": "X"}},
    ],
)
def test_places_of_a_template(tmp_path: Path, files: dict[str, Any]) -> None:
    assert head(adapter(tmp_path / "a", **files)).chat_template == "T"


def test_without_such_files_a_head_is_as_it_was(tmp_path: Path) -> None:
    assert head(adapter(tmp_path / "a")) == Generation()
    files: dict[str, Any] = {"tokenizer_config__json": {"eos_token": "E"}}
    built = fmplex.from_peft(adapter(tmp_path / "b", **files), name="v", backbone="m", out=tmp_path / "package")
    assert built.spec.head is not None
    assert built.spec.head.kind == "embedding"


def test_a_tokenizer_that_cannot_be_compared_is_said_not_to_be_taken(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", tokenizer__json=tokenizer())
    with pytest.warns(UserWarning, match=r"tokenizer.json is not taken: .*; give model=") as warned:
        head(folder)
    assert warned[0].filename == __file__


def test_a_tokenizer_is_the_backbones(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.json").write_text(json.dumps(tokenizer()))
    same = adapter(tmp_path / "same", tokenizer__json=tokenizer())
    assert head(same, model=str(base)) == Generation()
    padded: Any = {"tokenizer__json": tokenizer(pad=2), "tokenizer_config__json": {"pad_token": "pad"}}
    head(adapter(tmp_path / "padded", **padded), model=str(base))
    other = adapter(tmp_path / "other", tokenizer__json=tokenizer(turn=2))
    with pytest.raises(PackageRejected, match="'turn'"):
        head(other, model=str(base))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config__json": "{"},
        {"generation_config__json": "[]"},
        {"generation_config__json": {"temperature": "hot"}},
        {"generation_config__json": {"eos_token_id": "E"}},
        {"tokenizer__json": {"model": 5}},
        {"tokenizer__json": {"model": {"vocab": [5]}}},
        {"chat_template__jinja": "x" * 70_000},
    ],
)
def test_files_that_say_nothing_sensible(tmp_path: Path, files: dict[str, Any]) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.json").write_text(json.dumps(tokenizer()))
    with pytest.raises(InvalidInput):
        head(adapter(tmp_path / "a", **files), model=str(base))
