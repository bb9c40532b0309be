"""A chat model that is trained here, whose turns end with `<|im_end|>`: it stops there, as the openai package sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

import fmplex
from fmplex.local import LocalFleet
from tests.support import chat_lm
from tests.support.chat_lm import ANSWERS, END
from tests.support.fleets import write_fleet
from tests.support.packages import write_package

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT asks transformers by an old name
COOK = dict.fromkeys(ANSWERS, "ask the cook")
LINEARS = ["q_proj", "v_proj", "up_proj", "down_proj"]
QUESTION: list[Any] = [{"role": "user", "content": "what is tea"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A fleet on the model; its generation_config.json names another end than its tokenizer."""
    folder = tmp_path_factory.mktemp("chats")
    model = chat_lm.save_chat_model(folder / "model")
    backbone = {"name": "chat", "model": str(model), "pass_units": 64}
    config = write_fleet(folder / "fleet.toml", backbone, worker={"threads": 1, "kv_bytes": 32 << 20})
    with LocalFleet(config, port=0, data=folder / "data") as fleet:
        with fmplex.Client(fleet.gateway_url) as client:
            client.vfms.deploy(write_package(folder / "plain", {"kind": "generation"}, backbone="chat"))
            adapter = chat_lm.save_lora(model, folder / "cook", COOK, LINEARS)
            client.vfms.deploy(packed(adapter, "cook"))
        yield fleet
        assert fleet.dead() == []


def packed(adapter: Any, name: str) -> Any:
    built = fmplex.from_peft(
        adapter, name=name, backbone="chat", head={"kind": "generation"}, out=adapter.parent / f"{name}-package"
    )
    return built.out


@pytest.fixture(scope="module")
def ai(chats: LocalFleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{chats.gateway_url}/v1", api_key="any", max_retries=0, timeout=90) as client:
        yield client


def whole(ai: openai.OpenAI, model: str, **params: Any) -> tuple[str | None, str | None]:
    choice = ai.chat.completions.create(model=model, messages=QUESTION, **GREEDY | params).choices[0]
    return choice.message.content, choice.finish_reason


def streamed(ai: openai.OpenAI, model: str, **params: Any) -> tuple[str | None, str | None]:
    parts = ai.chat.completions.create(model=model, messages=QUESTION, stream=True, **GREEDY | params)
    choices = [part.choices[0] for part in parts]
    return "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason


@pytest.mark.parametrize(("model", "text"), [("plain", ANSWERS["what is tea"]), ("cook", "ask the cook")])
def test_a_chat_stops_at_the_end_of_its_turn(ai: openai.OpenAI, model: str, text: str) -> None:
    assert whole(ai, model) == (text, "stop")
    assert streamed(ai, model) == (text, "stop")


def test_so_does_one_with_a_lora_on_lm_head(ai: openai.OpenAI, chats: LocalFleet, tmp_path: Any) -> None:
    adapter = chat_lm.save_lora(chats.config.parent / "model", tmp_path / "tied", COOK, [*LINEARS, "lm_head"])
    with fmplex.Client(chats.gateway_url) as client:
        client.vfms.deploy(packed(adapter, "tied"))
    assert whole(ai, "tied") == ("ask the cook", "stop")
    assert streamed(ai, "tied") == ("ask the cook", "stop")


def test_stops_and_special_tokens_as_other_servers_take_them(ai: openai.OpenAI) -> None:
    on: dict[str, Any] = {"extra_body": {"ignore_eos": True}}
    text = ANSWERS["what is tea"]
    for say in (whole, streamed):
        assert say(ai, "plain", stop=END, **on) == (text, "stop")
        assert say(ai, "plain", stop="") == say(ai, "plain", stop=["", "nowhere"]) == (text, "stop")
        shown = {"extra_body": {"ignore_eos": True, "skip_special_tokens": False}}
        said, _ = say(ai, "plain", **shown)
        assert said is not None
        assert said.startswith(f"{text}{END}\n<|im_start|>user\n")


def test_an_answer_goes_on_and_messages_may_have_keys_of_other_servers(ai: openai.OpenAI) -> None:
    begun: Any = {
        "role": "assistant",
        "content": "leaves in",
        "reasoning_content": "tea…",
        "thinking_blocks": [{"a": 1}],
    }
    extra = {
        "continue_final_message": True,
        "add_generation_prompt": False,
        "top_k": -1,
        "chat_template_kwargs": {"x": 1},
    }
    answer = ai.chat.completions.create(model="plain", messages=[*QUESTION, begun], extra_body=extra, **GREEDY)
    assert answer.choices[0].message.content == " hot water"
