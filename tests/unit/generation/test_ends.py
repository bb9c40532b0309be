"""Where a text ends, and how it is drawn if nobody says: what generation_config.json, the tokenizer, the vFM and the call say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fmplex
from fmplex_broker.errors import FmplexError, InvalidInput, PackageRejected
from fmplex_broker.packages.package import read_package
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from tests.support import chat_lm, tiny, tiny_lm
from tests.support.chat_lm import ANSWERS, END, END_OF_TEXT, TURN

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
QUESTION = {"messages": [{"role": "user", "content": "what is tea"}]}
ANSWER = ANSWERS["what is tea"]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 40}
OTHERS = dict.fromkeys(ANSWERS, "ask the cook")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer ends with `<|im_end|>`, its generation_config with `<|endoftext|>`."""
    return chat_lm.save_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def base_model(chat_model: Path) -> Path:
    """The same weights, and a tokenizer that knows nothing of turns."""
    folder = chat_model.parent / "base"
    shutil.copytree(chat_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": END_OF_TEXT}))
    return folder


def opened(folder: Path) -> PackedEngine:
    return open_engine(
        BackboneSpec(name=tiny.NAME, model=str(folder), pass_units=64), WorkerSpec(device="cpu", kv_bytes=1 << 24)
    )


@pytest.fixture(scope="module")
def engine(chat_model: Path) -> PackedEngine:
    return opened(chat_model)


@pytest.fixture(scope="module")
def base(base_model: Path) -> PackedEngine:
    return opened(base_model)


def say(engine: PackedEngine, digest: str, value: Any = QUESTION, **params: Any) -> dict[str, Any]:
    out: dict[str, Any] = tiny_lm.drive(engine, [tiny_lm.prepare(engine, digest, value, **GREEDY | params)])[0]
    if isinstance(out, FmplexError):
        raise out
    return out


def told(engine: PackedEngine, digest: str, value: Any = QUESTION, **params: Any) -> tuple[str, str]:
    out = say(engine, digest, value, **params)
    return out["text"], out["finish_reason"]


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_turn_ends_where_the_tokenizer_says(engine: PackedEngine) -> None:
    assert told(engine, tiny_lm.load(engine)) == (ANSWER, "stop")


def test_the_end_of_generation_config_counts_too(engine: PackedEngine) -> None:
    head = engine._backbone.lm_head
    assert head is not None
    assert head.ends == {0, 2}


def test_without_anybodys_word_it_plays_the_user(base: PackedEngine) -> None:
    assert told(base, tiny_lm.load(base))[0].startswith(f"{ANSWER}\nuser\nand coffee\nassistant\n")


@pytest.mark.parametrize("head", [{"stop": [END]}, {"stop": END}, {"stop_token_ids": [2]}])
def test_a_vfm_says_where_its_turns_end(base: PackedEngine, head: dict[str, Any]) -> None:
    digest = tiny_lm.load(base, **head)
    assert told(base, digest) == (ANSWER, "stop")
    assert told(base, digest, stop=["water"]) == ("leaves in hot ", "stop")
    assert told(base, digest, ignore_eos=True)[1] == "length"
    assert told(base, digest, ignore_eos=True, stop=END) == (ANSWER, "stop")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (END, ANSWER),
        ([END, "\n"], ANSWER),
        (f"{END}\n", ANSWER),
        (f"water{END}", "leaves in hot "),
        ("\n<|im_start|>user", ANSWER),
        ("<|im_start|>assistant\n", f"{ANSWER}\nuser\nand coffee\n"),
        (f"{END}\n<|im_start|>", ANSWER),
        ("|im", None),  # not of a special token
        ("water\nuser", "leaves in hot "),  # what comes out, without the special tokens in it
        ("leaves\nuser", None),
    ],
)
def test_a_stop_may_spell_special_tokens(base: PackedEngine, stop: Any, text: str | None) -> None:
    digest = tiny_lm.load(base)
    assert told(base, digest, stop=stop) == (told(base, digest) if text is None else (text, "stop"))


def test_special_tokens_come_out_if_they_are_asked_for(base: PackedEngine) -> None:
    digest = tiny_lm.load(base)
    out = say(base, digest, skip_special_tokens=False, logprobs=0)
    assert out["text"].startswith(f"{ANSWER}{END}\n{TURN}<|im_start|>assistant\n")
    for entry in out["logprobs"][:-1]:  # the last one is the end
        assert out["text"][entry["at"] :].startswith(entry["token"])
    assert told(base, digest, skip_special_tokens=False, stop=f"{END}\n") == (ANSWER, "stop")


def test_an_end_never_comes_out(engine: PackedEngine) -> None:
    assert told(engine, tiny_lm.load(engine), skip_special_tokens=False) == (ANSWER, "stop")


def test_no_end_and_no_stop_before_min_tokens(engine: PackedEngine) -> None:
    digest = tiny_lm.load(engine)
    usual = say(engine, digest)["completion_tokens"]
    for params in (
        {},
        {"stop": "leaves"},
        {"stop": END, "ignore_eos": True},
        {"stop_token_ids": [2], "ignore_eos": True},
    ):
        out = say(engine, digest, min_tokens=usual + 5, **params)
        assert usual + 5 <= out["completion_tokens"]
        assert out["text"].startswith(ANSWER)
    assert told(engine, digest, min_tokens=usual - 1) == (ANSWER, "stop"), "the end is a token, too"
    assert told(engine, digest, stop="leaves", min_tokens=1) != (ANSWER, "stop")


def test_a_schema_ends_where_it_ends_whatever_min_tokens_says(engine: PackedEngine) -> None:
    text, reason = told(engine, tiny_lm.load(engine), schema={"enum": ["tea"]}, min_tokens=30)
    assert (json.loads(text), reason) == ("tea", "stop")


def test_an_end_that_the_model_has_not_is_no_version(base: PackedEngine) -> None:
    with pytest.raises(PackageRejected) as refusal:
        tiny_lm.load(base, stop_token_ids=[2, 99_999])
    assert refusal.value.field == "head.stop_token_ids"


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cool(chat_model: Path) -> PackedEngine:
    folder = chat_model.parent / "cool"
    shutil.copytree(chat_model, folder)
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.05}
    chat_lm.sampling(folder, **said)
    return opened(folder)


def used(engine: PackedEngine, digest: str, **params: Any) -> dict[str, float]:
    made = tiny_lm.prepare(engine, digest, "tea", **params).sequence.sampler.params
    return {name: getattr(made, name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}


def test_the_models_own_sampling_holds_unless_the_vfm_or_the_call_says_otherwise(cool: PackedEngine) -> None:
    own = {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": 0, "repetition_penalty": 1.05}
    plain, hot = tiny_lm.load(cool), tiny_lm.load(cool, temperature=0.9, top_k=0, min_p=0.1)
    assert used(cool, plain) == own
    assert used(cool, hot) == own | {"temperature": 0.9, "top_k": 0, "min_p": 0.1}
    assert used(cool, hot, temperature=1.0, min_p=0) == own | {"temperature": 1, "top_k": 0}
    assert used(cool, plain, top_k=-1, top_p=1.0, repetition_penalty=1) == own | {
        "top_k": 0,
        "top_p": 1,
        "repetition_penalty": 1,
    }


def test_without_any_word_a_text_is_drawn_as_openai_draws(engine: PackedEngine) -> None:
    nothing = {"temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    assert used(engine, tiny_lm.load(engine)) == nothing


def test_sampling_that_is_none_is_refused_at_the_start(chat_model: Path) -> None:
    folder = chat_model.parent / "wrong"
    shutil.copytree(chat_model, folder)
    chat_lm.sampling(folder, repetition_penalty=-1.0)
    with pytest.raises(InvalidInput, match=r"generation_config.json: repetition_penalty") as refusal:
        opened(folder)
    assert refusal.value.field == "backbone.model"


# --- prompts ----------------------------------------------------------------------------------------------------------


def prompt(engine: PackedEngine, digest: str, value: Any, **params: Any) -> str:
    job = tiny_lm.prepare(engine, digest, value, **params)
    return str(engine._backbone.tokenizer.whole.decode(job.sequence.tokens, skip_special_tokens=False))


THINKS = (
    "{% for m in messages %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}{% endfor %}"
    "{% if mood is defined %}[{{ mood.of | join(' ') }}]{% endif %}{% if add_generation_prompt %}>{% endif %}"
)


def test_variables_of_the_template(chat_model: Path, engine: PackedEngine) -> None:
    own = tiny_lm.load(engine, chat_template=THINKS)
    assert (
        prompt(engine, own, QUESTION, chat_template_kwargs={"mood": {"of": ["tea", "water"]}})
        == "what is tea[tea water]>"
    )
    folder = chat_model.parent / "thinks"
    shutil.copytree(chat_model, folder)
    (folder / "chat_template.jinja").write_text(THINKS)
    plain = opened(folder)
    digest = tiny_lm.load(plain)
    assert prompt(plain, digest, QUESTION, chat_template_kwargs={"mood": {"of": ["tea"]}}) == "what is tea[tea]>"
    assert prompt(plain, digest, QUESTION) == "what is tea>"
    talk = {"messages": [*QUESTION["messages"], {"role": "assistant", "content": "hot", "reasoning_content": "leaves"}]}
    assert prompt(plain, digest, talk) == prompt(engine, own, talk) == "what is tea(leaves)hot>"
    endless = {"mood": {"of": 5}}
    with pytest.raises(InvalidInput, match="template refuses"):
        prompt(plain, digest, QUESTION, chat_template_kwargs=endless)


@pytest.mark.parametrize("head", [{}, {"chat_template": chat_lm.TEMPLATE}])
def test_a_last_message_goes_on(engine: PackedEngine, head: dict[str, Any]) -> None:
    digest = tiny_lm.load(engine, **head)
    talk = {"messages": [*QUESTION["messages"], {"role": "assistant", "content": "leaves in"}]}
    whole = prompt(engine, digest, talk, continue_final_message=True)
    assert whole.endswith("assistant\nleaves in")
    assert told(engine, digest, talk, continue_final_message=True, add_generation_prompt=False) == (
        " hot water",
        "stop",
    )
    assert prompt(engine, digest, talk, add_generation_prompt=False).endswith(f"leaves in{END}\n")
    assert prompt(engine, digest, talk).endswith("<|im_start|>assistant\n")


def test_special_tokens_around_texts_and_chats(lm_folder: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(lm_folder("llama"), tmp_path / "model")
    saved = json.loads((folder / "tokenizer.json").read_text())
    pad = {"SpecialToken": {"id": "<pad>", "type_id": 0}}
    around = {
        "type": "TemplateProcessing",
        "single": [pad, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<pad>": {"id": "<pad>", "ids": [1], "tokens": ["<pad>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(saved | {"post_processor": around}))
    engine = opened(folder)
    digest = tiny_lm.load(engine)
    chat = {"messages": [{"role": "user", "content": "tea"}]}
    assert prompt(engine, digest, "tea").startswith("<pad>")
    assert prompt(engine, digest, "tea", add_special_tokens=False) == "tea"
    assert not prompt(engine, digest, chat).startswith("<pad>")
    assert prompt(engine, digest, chat, add_special_tokens=True).startswith("<pad>")


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj", "up_proj", "down_proj"],
        ["q_proj", "v_proj", "up_proj", "down_proj", "lm_head"],
    ],
    ids=["linears", "lm_head"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_lies_beside_an_adapter_is_taken(
    chat_model: Path, base_model: Path, base: PackedEngine, tmp_path: Path, targets: list[str]
) -> None:
    """The backbone knows nothing of turns; the adapter was trained with a tokenizer that does."""
    folder = chat_lm.save_lora(chat_model, tmp_path / "lora", OTHERS, targets)
    chat_lm_said = {"eos_token_id": [2, 0], "temperature": 0.3, "top_p": 0.8}
    (folder / "generation_config.json").write_text(json.dumps(chat_lm_said))
    built = fmplex.from_peft(
        folder, name="v", backbone=tiny.NAME, head={"kind": "generation"}, out=tmp_path / "p", model=str(base_model)
    )
    package = read_package(built.out)
    base.load(base.fit(package))
    assert told(base, package.digest) == ("ask the cook", "stop")
    assert used(base, package.digest) | {"min_p": 0} == {
        "temperature": 0.3, "top_p": 0.8, "top_k": 0, "min_p": 0, "repetition_penalty": 1
    }  # fmt: skip
