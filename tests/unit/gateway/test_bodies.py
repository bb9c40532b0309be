"""What of OpenAI's requests is taken, what it means here, and how the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fmplex_broker.errors import FmplexError, InvalidInput
from fmplex_broker.specs.sampling import GenerationParams
from fmplex_broker.specs.schema import invalid, parse
from fmplex_gateway.generation.bodies import ChatBody, CompletionBody, TextBody
from fmplex_gateway.generation.text_calls import TextCall, translated_errors

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> TextCall:
    return ask(ChatBody, {"messages": HI} | fields)


def complete(**fields: Any) -> TextCall:
    return ask(CompletionBody, {"prompt": "hi"} | fields)


def ask(kind: type[TextBody], fields: dict[str, Any]) -> TextCall:
    """As the gateway does it."""
    try:
        return TextCall.of(kind.model_validate({"model": "poet"} | fields))
    except ValidationError as e:
        raise invalid(e) from None


def test_nothing_said_means_the_defaults() -> None:
    assert chat().params == {}
    assert chat().inputs == [{"messages": HI}]
    assert complete().inputs == ["hi"]


def test_a_null_is_as_good_as_nothing() -> None:
    nulls = dict.fromkeys(
        [
            "max_tokens",
            "n",
            "stop",
            "seed",
            "logprobs",
            "response_format",
            "stream",
            "stream_options",
            "tools",
            "audio",
            "new",
        ]
    )
    assert chat(**nulls) == chat()


def test_every_parameter_arrives_under_our_name_and_is_known_there() -> None:
    same: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": 0.3,
        "frequency_penalty": -0.3, "seed": 7, "stop_token_ids": [3], "ignore_eos": True, "max_tokens": 9, "stream": True,
        "min_tokens": 2, "skip_special_tokens": False, "add_special_tokens": True, "continue_final_message": True,
        "add_generation_prompt": False, "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    asked = chat(**same, stop="END", logprobs=True, top_logprobs=3)
    assert asked.params == same | {"stop": ["END"], "logprobs": 3}
    assert parse(GenerationParams, asked.params).stop == ("END",)


@pytest.mark.parametrize(
    ("given", "logprobs"),
    [({"logprobs": True}, 0), ({"logprobs": False}, None), ({"logprobs": True, "top_logprobs": 0}, 0)],
)
def test_chats_ask_for_logprobs_in_two_fields(given: dict[str, Any], logprobs: int | None) -> None:
    assert chat(**given).params.get("logprobs") == logprobs


def test_completions_ask_for_logprobs_in_one() -> None:
    assert complete(logprobs=2).params["logprobs"] == 2


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_has_two_names(name: str) -> None:
    assert chat(**{name: 5}).params == {"max_tokens": 5}


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"type": "null"}}},
            {"type": "null"},
        ),
    ],
)
def test_a_response_format_becomes_a_schema(wanted: dict[str, Any], schema: dict[str, Any] | None) -> None:
    assert chat(response_format=wanted).params.get("schema") == schema
    assert complete(response_format=wanted).params.get("schema") == schema


def test_messages_lose_what_templates_do_not_know() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    sent = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "anna"},
        {"role": "assistant", "content": "so", "refusal": None, "tool_calls": None, "annotations": []},
    ]
    assert chat(messages=sent).inputs[0]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "so"},
    ]


def test_messages_keep_what_was_thought_and_lose_keys_of_other_servers() -> None:
    sent = {
        "role": "assistant",
        "content": "4",
        "provider_specific_fields": {"x": 1},
        "thinking_blocks": [],
        "prefix": 1,
    }
    for name in ("reasoning_content", "reasoning"):
        thought = chat(messages=[sent | {name: "2 and 2"}]).inputs[0]["messages"]
        assert thought == [{"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}]
    for nothing in (None, ""):
        assert chat(messages=[sent | {"reasoning_content": nothing}]).inputs[0]["messages"] == [
            {"role": "assistant", "content": "4"}
        ]


@pytest.mark.parametrize("stop", ["", [""], ["", ""]])
def test_an_empty_stop_is_none(stop: Any) -> None:
    assert parse(GenerationParams, chat(stop=stop).params).stop == ()
    assert parse(GenerationParams, complete(stop=stop, top_k=-1).params).top_k == 0


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [{"input_ids": [1, 2]}]),
        ([[1], [2, 3]], [{"input_ids": [1]}, {"input_ids": [2, 3]}]),
    ],
)
def test_a_prompt_is_texts_or_token_ids_one_or_many(prompt: Any, inputs: list[Any]) -> None:
    assert complete(prompt=prompt).inputs == inputs


@pytest.mark.parametrize("who", ["user", "safety_identifier", "prompt_cache_key"])
def test_who_asks_is_taken_and_means_nothing(who: str) -> None:
    assert chat(**{who: "anna"}) == chat()


@pytest.mark.parametrize(
    "nothing",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"parallel_tool_calls": True},
        {"logit_bias": {}},
        {"modalities": ["text"]},
        {"store": False},
        {"service_tier": "auto"},
        {"verbosity": "medium"},
        {"reasoning_effort": "medium"},
        {"logprobs": False, "top_logprobs": 0},
        {"stream": False, "stream_options": {"include_usage": False}},
    ],
)
def test_what_asks_for_nothing_is_taken(nothing: dict[str, Any]) -> None:
    assert chat(**nothing) == chat()


@pytest.mark.parametrize("nothing", [{"best_of": 1}, {"echo": False}, {"suffix": ""}, {"logprobs": False}])
def test_what_asks_completions_for_nothing_is_taken(nothing: dict[str, Any]) -> None:
    assert complete(**nothing) == complete()
    assert complete(n=3, **nothing) == complete(n=3)


def test_the_best_of_as_many_as_are_told_are_all_of_them() -> None:
    assert complete(n=3, best_of=3) == complete(n=3)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "FMplex does not have this"),
        ({"functions": [{}]}, "functions", "FMplex does not have this"),
        ({"audio": {"voice": "x"}}, "audio", "FMplex does not have this"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "FMplex does not have this"),
        ({"colour": "red"}, "colour", "unknown key"),
        ({"messages": []}, "messages", "at least 1"),
        ({"tools": [{"type": "function"}]}, "tools", "tools are not there yet"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "tools are not there yet"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "not image_url"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content", "required"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "messages.0.tool_calls",
            "tools are not there yet",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needs it"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"name": "x"}}},
            "response_format.json_schema",
            "only",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
            "dictionary",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "without logprobs"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "FMplex does not have this"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "one of them"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "less than or equal to 128"),
    ],
)
def test_what_is_wrong_with_a_chat_is_told_by_name(fields: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        chat(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize("prompt", [[], 5, {"text": "x"}, [None], [True]])
def test_a_prompt_that_is_none_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidInput, match="a text, token ids, or a list of either") as caught:
        complete(prompt=prompt)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("fields", [{"echo": True}, {"best_of": 3}, {"best_of": 3, "n": 2}, {"suffix": "x"}])
def test_what_completions_do_not_have_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="FMplex does not have this"):
        complete(**fields)


CHAT = ChatBody.model_validate({"model": "poet", "messages": HI})
NEWER = ChatBody.model_validate({"model": "poet", "messages": HI, "max_completion_tokens": 0})
COMPLETION = CompletionBody.model_validate({"model": "poet", "prompt": "x"})


@pytest.mark.parametrize(
    ("body", "ours", "theirs"),
    [
        (CHAT, "inputs.0.messages.1.content", "messages.1.content"),
        (CHAT, "inputs.0.messages", "messages"),
        (CHAT, "inputs.0", "messages"),
        (CHAT, "params.schema", "response_format"),
        (CHAT, "schema", "response_format"),
        (CHAT, "params.max_tokens", "max_tokens"),
        (NEWER, "params.max_tokens", "max_completion_tokens"),
        (CHAT, "temperature", "temperature"),
        (CHAT, "logprobs", "top_logprobs"),
        (COMPLETION, "logprobs", "logprobs"),
        (COMPLETION, "inputs.3.input_ids", "prompt.3"),
        (COMPLETION, "inputs", "prompt"),
    ],
)
def test_errors_name_the_fields_of_the_callers_body(body: TextBody, ours: str, theirs: str) -> None:
    with pytest.raises(InvalidInput) as caught, translated_errors(body):
        raise InvalidInput("wrong", field=ours)
    assert caught.value.field == theirs


def test_messages_begin_with_the_callers_field_too() -> None:
    with pytest.raises(InvalidInput) as caught, translated_errors(CHAT):
        parse(GenerationParams, {"logprobs": 21})
    assert caught.value.to_wire()["message"].startswith("top_logprobs: ")


def test_too_many_of_something_is_told_in_plain_words() -> None:
    with pytest.raises(InvalidInput, match=r"^stop: at most 16 are taken, not 17$"), translated_errors(CHAT):
        parse(GenerationParams, {"stop": ["a"] * 17})


def test_errors_speak_of_the_length_as_the_caller_did() -> None:
    with pytest.raises(InvalidInput) as caught, translated_errors(NEWER):
        raise InvalidInput("too long; lower max_tokens", field="input")
    assert caught.value.to_wire()["message"] == "too long; lower max_completion_tokens"


def test_an_error_about_no_field_stays_one() -> None:
    with pytest.raises(FmplexError) as caught, translated_errors(CHAT):
        raise FmplexError("no")
    assert caught.value.field is None
